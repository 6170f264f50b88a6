// SPDX-License-Identifier: MIT
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  CMD,
  encodeInfoRequest,
  encodeOption,
  OPT,
  REP,
  u32,
  u64,
} from '../../support/nbd-wire.js';
import { runPeer } from '../../support/peers.js';
import { RawNbd } from '../../support/raw-nbd.js';
import { testScope } from '../../support/temp.js';
import {
  DISK_SIZE,
  haggle,
  open,
  type SpecServer,
  startOwnServer,
  startSpecServer,
} from './fixture.js';

let server: SpecServer;
beforeAll(async () => {
  server = await startSpecServer();
});
afterAll(() => server?.close());

const ZEROES = 124;

it('greets with the newstyle magic numbers only', async () => {
  const client = await RawNbd.connect(testScope(), server.socket);
  await client.greeting();
  expect(client.pendingBytes).toBe(0);
});

it('offers fixed newstyle and NO_ZEROES, and no other handshake flag', async () => {
  const client = await RawNbd.connect(testScope(), server.socket);
  expect(await client.greeting()).toBe(3);
});

it('closes the connection on client flags that it did not offer', async () => {
  for (const flags of [4, 7, 0x8000_0003, 0xffff_ffff]) {
    const client = await haggle(server, flags);
    expect(await client.readToEnd()).toHaveLength(0);
  }
});

it('leaves out the 124 zeroes when the client asked for that', async () => {
  const client = await haggle(server, 3);
  client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('disk')));
  const head = await client.read(10);
  expect(head.readBigUInt64BE(0)).toBe(BigInt(DISK_SIZE));
  expect(await client.callError({ type: CMD.FLUSH })).toBe(0);
});

it('sends the 124 zeroes when the client did not refuse them', async () => {
  for (const flags of [0, 1]) {
    const client = await haggle(server, flags);
    client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('disk')));
    await client.read(10);
    expect(await client.read(ZEROES)).toEqual(Buffer.alloc(ZEROES));
    expect(await client.callError({ type: CMD.FLUSH })).toBe(0);
  }
});

it('ends the session when EXPORT_NAME names no export', async () => {
  const client = await haggle(server);
  client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('none such')));
  expect(await client.readToEnd()).toHaveLength(0);
});

it('sends no zeroes after GO, whatever the client flags', async () => {
  for (const flags of [1, 3]) {
    const client = await haggle(server, flags);
    await client.go('disk');
    expect(await client.callError({ type: CMD.FLUSH })).toBe(0);
  }
});

it('repeats the option in every reply to it', async () => {
  const client = await haggle(server);
  const tries: [number, Buffer][] = [
    [OPT.LIST, Buffer.alloc(0)],
    [OPT.INFO, encodeInfoRequest('disk')],
    [OPT.INFO, encodeInfoRequest('none such')],
    [0x1234_5678, Buffer.alloc(3)],
  ];
  for (const [option, data] of tries) {
    for (const reply of await client.option(option, data)) expect(reply.option).toBe(option);
  }
});

it('answers an unknown option with ERR_UNSUP and parses the next one', async () => {
  const client = await haggle(server);
  for (const option of [0, OPT.PEEK_EXPORT, 12, 0x7fff_ffff, 0xffff_ffff]) {
    for (const length of [0, 1, 5000]) {
      expect(await client.optionType(option, Buffer.alloc(length))).toBe(REP.ERR_UNSUP);
    }
  }
  await client.go('disk');
});

it('keeps the session after an option that it had to refuse', async () => {
  const client = await haggle(server);
  const refused: [number, Buffer][] = [
    [OPT.LIST, Buffer.alloc(1)],
    [OPT.STARTTLS, Buffer.alloc(0)],
    [OPT.STRUCTURED_REPLY, Buffer.alloc(8)],
    [OPT.INFO, Buffer.alloc(0)],
    [OPT.INFO, Buffer.alloc(5)],
    [OPT.GO, encodeInfoRequest('none such')],
    [OPT.GO, Buffer.concat([u32(1000), Buffer.from('short')])],
    [OPT.LIST_META_CONTEXT, u32(0xffff_ffff)],
    [OPT.SET_META_CONTEXT, u64(0)],
  ];
  for (const [option, data] of refused) {
    expect(await client.optionType(option, data)).toBeGreaterThan(REP.ERR_UNSUP - 1);
  }
  await client.go('disk');
  expect(await client.callError({ type: CMD.READ, length: 512 })).toBe(0);
});

it('acknowledges ABORT, with data or without, and closes', async () => {
  for (const length of [0, 7]) {
    const client = await haggle(server);
    const replies = await client.option(OPT.ABORT, Buffer.alloc(length));
    expect(replies).toEqual([{ option: OPT.ABORT, type: REP.ACK, data: Buffer.alloc(0) }]);
    expect(await client.readToEnd()).toHaveLength(0);
  }
});

it('is not disturbed by a client that sends ABORT and leaves at once', async () => {
  for (let time = 0; time < 20; time += 1) {
    const client = await haggle(server);
    client.send(encodeOption(OPT.ABORT));
    client.destroy();
  }
  await open(server, 'disk');
});

it('speaks to a client that did not set fixed newstyle', async () => {
  const client = await haggle(server, 0);
  client.send(encodeOption(OPT.EXPORT_NAME, Buffer.from('disk')));
  const head = await client.read(10 + ZEROES);
  expect(head.readBigUInt64BE(0)).toBe(BigInt(DISK_SIZE));
});

it('answers options during its shutdown with ERR_SHUTDOWN, if at all', async () => {
  const own = await startOwnServer();
  const client = await haggle(own);
  const stopped = own.daemon.stop();
  client.send(encodeOption(OPT.LIST));
  const rest = await client.readToEnd();
  // What came before the signal was noticed is a complete listing; anything later is the error.
  if (rest.length > 0 && rest.length === 20 + rest.readUInt32BE(16)) {
    expect([REP.ERR_SHUTDOWN, REP.ACK]).toContain(rest.readUInt32BE(12));
  }
  expect((await stopped).code).toBe(0);
});

/** Prints TCP_NODELAY of every connected TCP socket of a process, one 0 or 1 a line. */
const NODELAY_SCRIPT = `
import ctypes, os, socket, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(pid)
for name in os.listdir(f'/proc/{pid}/fd'):
    try:
        if not os.readlink(f'/proc/{pid}/fd/{name}').startswith('socket:'):
            continue
    except FileNotFoundError:
        continue
    fd = libc.syscall(438, pidfd, int(name), 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), 'pidfd_getfd')
    s = socket.socket(fileno=fd)
    if s.family == socket.AF_INET:
        try:
            s.getpeername()
        except OSError:
            continue
        print(1 if s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) else 0)
`;

it('disables the Nagle algorithm on its TCP connections', async () => {
  const own = await startOwnServer((dir) => [
    ...['--blockdev', `driver=file,node-name=disk,filename=${dir}/disk.raw`],
    ...['--export', 'type=nbd,id=e,node-name=disk'],
  ]);
  const monitor = await own.daemon.qmp(testScope());
  await monitor.execute('nbd-server-stop');
  const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } };
  await monitor.execute('nbd-server-start', { addr });
  await monitor.execute('block-export-add', { type: 'nbd', id: 'tcp', 'node-name': 'disk' });
  const [port] = await own.daemon.tcpPorts();
  const client = await RawNbd.handshake(testScope(), { host: '127.0.0.1', port: port ?? 0 });
  await client.go('disk');
  const shown = await runPeer('python3', ['-c', NODELAY_SCRIPT, `${own.daemon.pid}`]);
  expect(shown.stdout).toBe('1\n');
});
