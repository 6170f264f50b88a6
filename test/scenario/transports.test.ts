// SPDX-License-Identifier: MIT
/** The ways into a daemon, and the ways it comes and goes: whole processes with real clients. */
import { existsSync } from 'node:fs';
import { readFile, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { WebSocket } from 'ws';
import { NbdClient } from '../../src/nbd.js';
import { daemonCommand, startDaemon, waitUntil } from '../support/daemon.js';
import { diskferry } from '../support/diskferry.js';
import { MIB, makeImage, patternBytes, readRange } from '../support/images.js';
import { runPeer, spawnTracked, tryPeer } from '../support/peers.js';
import { QmpClient } from '../support/qmp-client.js';
import { serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 2 * MIB;

/** As a service manager does it: listens, passes the socket as descriptor 3, becomes the daemon. */
const ACTIVATE = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(16)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='nbd')
os.execv(sys.argv[2], sys.argv[2:])
`;

async function imageIn(dir: string): Promise<string> {
  const path = join(dir, 'disk.img');
  await makeImage(path, { size: SIZE, data: [{ offset: 0, length: SIZE }] });
  return path;
}

const blockdev = (path: string) => ['--blockdev', `driver=file,node-name=disk,filename=${path}`];
const exported = ['--export', 'type=nbd,id=disk,node-name=disk,name=disk,writable=on'];

describe('a socket of the service manager', () => {
  it.each(['3', 'nbd'])('is served when options call it %s', async (str) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = await imageIn(dir);
    const [socket, pidfile, copy] = ['nbd.sock', 'pid', 'copy.img'].map((n) => join(dir, n));
    const { program, args } = daemonCommand();
    const options = [...blockdev(path), '--nbd-server', `addr.type=fd,addr.str=${str}`];
    const child = spawnTracked('python3', [
      ...['-c', ACTIVATE, String(socket), program, ...args, ...options, ...exported],
      ...['--pidfile', String(pidfile)],
    ]);
    const exited = new Promise((resolve) => child.once('exit', resolve));
    scope.defer(() => child.kill('SIGKILL'));
    await waitUntil(() => existsSync(String(pidfile)), { what: () => 'the pid file' });
    const uri = `nbd+unix:///disk?socket=${socket}`;
    await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, String(copy)]);
    expect((await readFile(String(copy))).equals(await readFile(path))).toBe(true);
    child.kill('SIGTERM');
    expect(await exited).toBe(0);
  });

  it.each(['3', 'nbd'])('is handed on to a daemon in the background as %s', async (str) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = await imageIn(dir);
    const [socket, pidfile, copy] = ['nbd.sock', 'pid', 'copy.img'].map((n) =>
      String(join(dir, n)),
    );
    const { program, args } = daemonCommand();
    const options = [...blockdev(path), '--nbd-server', `addr.type=fd,addr.str=${str}`];
    await runPeer('python3', [
      ...['-c', ACTIVATE, String(socket), program, ...args, ...options, ...exported],
      ...['--pidfile', String(pidfile), '--daemonize'],
    ]);
    const pid = Number(await readFile(String(pidfile), 'utf8'));
    scope.defer(() => process.kill(pid, 'SIGTERM'));
    const uri = `nbd+unix:///disk?socket=${socket}`;
    await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, String(copy)]);
    expect((await readFile(String(copy))).equals(await readFile(path))).toBe(true);
  });
});

/** A daemon with data, and another with an empty disk behind a WebSocket. */
async function webSocketTarget(scope: Scope) {
  const served = await serveImage(scope, { size: SIZE, data: [{ offset: 0, length: MIB }] });
  const path = join(await scope.tempDir(), 'target.img');
  await makeImage(path, { size: SIZE });
  const server = 'addr.type=inet,addr.host=127.0.0.1,addr.port=0,websocket=on';
  const daemon = await startDaemon(scope, [
    ...[...blockdev(path), '--nbd-server', server, ...exported],
  ]);
  const [port] = await daemon.tcpPorts();
  return { served, path, url: `ws://127.0.0.1:${port}/disk` };
}

describe('NBD over WebSocket', () => {
  it('gives the bytes of the image to our client, and takes writes', async () => {
    const scope = testScope();
    const path = await imageIn(await scope.tempDir());
    const server = 'addr.type=inet,addr.host=127.0.0.1,addr.port=0,websocket=on';
    const daemon = await startDaemon(scope, [
      ...[...blockdev(path), '--nbd-server', server, ...exported],
    ]);
    const [port] = await daemon.tcpPorts();
    const client = await NbdClient.connect({
      address: { type: 'websocket', url: `ws://127.0.0.1:${port}/` },
      exportName: 'disk',
    });
    scope.defer(() => client.close());
    const bytes = Buffer.alloc(SIZE);
    await client.read(0, bytes);
    expect(bytes.equals(await readFile(path))).toBe(true);
    await client.write(512, patternBytes(1024, 9));
    expect((await readRange(path, 512, 1024)).equals(patternBytes(1024, 9))).toBe(true);
  });

  it('is a target for migrations, drive-mirror and conversions', async () => {
    const scope = testScope();
    const { served, path, url } = await webSocketTarget(scope);
    const image = await readFile(served.path);
    const empty = () => truncate(path, 0).then(() => truncate(path, SIZE));

    const migrated = await diskferry([
      ...['migrate', '--from', served.daemon.qmpPath, '--node', 'disk', '--to', url, '--copy-only'],
    ]);
    expect(migrated).toMatchObject({ code: 0, stdout: `copied: 'disk' to ${url}\n` });
    expect((await readFile(path)).equals(image)).toBe(true);

    await empty();
    const qmp = await served.daemon.qmp(scope);
    const job = { 'job-id': 'job', device: 'disk', sync: 'full', mode: 'existing' };
    await qmp.execute('drive-mirror', { ...job, target: url });
    await qmp.event('BLOCK_JOB_READY');
    await qmp.execute('block-job-cancel', { device: 'job' });
    await qmp.event('BLOCK_JOB_COMPLETED');
    expect((await readFile(path)).equals(image)).toBe(true);

    await empty();
    const convert = ['img', 'convert', '-n', '-f', 'raw', '-O', 'raw', served.uri, url];
    expect(await diskferry(convert)).toMatchObject({ code: 0, stderr: '' });
    expect((await readFile(path)).equals(image)).toBe(true);
  });

  it('is an address of the driver nbd, which refuses what is none', async () => {
    const scope = testScope();
    const { served, url } = await webSocketTarget(scope);
    const qmp = await served.daemon.qmp(scope);
    const add = (server: object) =>
      qmp.execute('blockdev-add', { driver: 'nbd', 'node-name': 'n', server, export: 'disk' });
    const bare = url.replace(/disk$/, '');
    for (const [wrong, text] of [
      ['http://h/', "'http' is no scheme"],
      ['nbd://h/', "'nbd://h/' is no WebSocket URL"],
      ['wss://h/', 'The driver nbd has no TLS'],
      [`${bare}?export=disk`, "the option 'export' names the export"],
    ] as const) {
      await expect(add({ type: 'websocket', url: wrong })).rejects.toThrow(text);
    }
    await add({ type: 'websocket', url: bare });
    const nodes =
      await qmp.execute<{ 'node-name': string; file: string }[]>('query-named-block-nodes');
    expect(nodes.find((node) => node['node-name'] === 'n')?.file).toBe(`${bare}?export=disk`);
  });

  it('greets any WebSocket client in a binary message', async () => {
    const scope = testScope();
    const server = 'addr.type=inet,addr.host=127.0.0.1,addr.port=0,websocket=on';
    const daemon = await startDaemon(scope, ['--nbd-server', server]);
    const [port] = await daemon.tcpPorts();
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`, 'binary');
    scope.defer(() => socket.terminate());
    const [data, isBinary] = await new Promise<[Buffer, boolean]>((resolve, reject) => {
      socket.once('message', (message: Buffer, binary) => resolve([message, binary]));
      socket.once('error', reject);
    });
    expect(isBinary).toBe(true);
    expect(data.toString('latin1', 0, 16)).toBe('NBDMAGICIHAVEOPT');
  });
});

describe('monitors', () => {
  it('answer side by side, and each to one client after the other', async () => {
    const scope = testScope();
    const second = join(await scope.tempDir(), 'second.sock');
    const daemon = await startDaemon(scope, [
      ...['--chardev', `socket,id=second,path=${second},server=on,wait=off`],
      ...['--monitor', 'chardev=second'],
    ]);
    const first = await daemon.qmp(scope);
    for (let round = 0; round < 5; round++) {
      const other = await QmpClient.connect(second);
      const node = { driver: 'null-co', 'node-name': `n${round}`, size: MIB };
      await Promise.all([other.execute('blockdev-add', node), first.execute('query-status')]);
      other.close();
    }
    expect(await first.execute<unknown[]>('query-named-block-nodes')).toHaveLength(5);
  });

  it('speak WebSocket on a device with websocket=on', async () => {
    const scope = testScope();
    const daemon = await startDaemon(scope, [
      ...['--chardev', 'socket,id=ws,host=127.0.0.1,port=0,server=on,wait=off,websocket=on'],
      ...['--monitor', 'chardev=ws'],
    ]);
    const [port] = await daemon.tcpPorts();
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`, 'binary');
    scope.defer(() => socket.terminate());
    let text = '';
    socket.on('message', (data: Buffer) => {
      text += data.toString('utf8');
    });
    await waitUntil(() => text.includes('"QMP"'), { what: () => `a greeting: ${text}` });
    socket.send('{"execute":"qmp_capabilities","id":7}\n');
    await waitUntil(() => /"id": ?7/.test(text), { what: () => `a reply: ${text}` });
    expect(text).not.toContain('"error"');
  });
});

function alive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** Gone, or waiting for its parent to take notice. */
async function ended(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return stat === '' || /\) Z /.test(stat);
}

/** @param prefix of the names of its files, as it is told them; it is started in `dir` */
async function daemonized(scope: Scope, dir: string, prefix: string): Promise<number> {
  const { program, args } = daemonCommand();
  const [qmp, nbd, pidfile] = ['qmp.sock', 'nbd.sock', 'pid'].map((n) => `${prefix}${n}`);
  const path = await imageIn(dir);
  await runPeer(
    program,
    [
      ...[...args, ...blockdev(path), '--nbd-server', `addr.type=unix,addr.path=${nbd}`],
      ...[...exported, '--chardev', `socket,id=m,path=${qmp},server=on,wait=off`],
      ...['--monitor', 'chardev=m', '--pidfile', String(pidfile), '--daemonize'],
    ],
    { cwd: dir },
  );
  const pid = Number(await readFile(join(dir, 'pid'), 'utf8'));
  scope.defer(() => alive(pid) && process.kill(pid, 'SIGKILL'));
  return pid;
}

describe('a daemon in the background', () => {
  it.each(['absolute', 'relative'])(
    'serves when the command returns, and leaves nothing after SIGTERM: %s names',
    async (names) => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const pid = await daemonized(scope, dir, names === 'absolute' ? `${dir}/` : '');
      expect((await readFile(`/proc/${pid}/cmdline`, 'utf8')).includes('--daemonize')).toBe(true);
      const qmp = await QmpClient.connect(join(dir, 'qmp.sock'));
      expect(await qmp.execute('query-status')).toMatchObject({ running: true });
      qmp.close();
      const uri = `nbd+unix:///disk?socket=${join(dir, 'nbd.sock')}`;
      expect(Number((await runPeer('nbdinfo', ['--size', uri])).stdout)).toBe(SIZE);
      process.kill(pid, 'SIGTERM');
      const left = () => ['qmp.sock', 'nbd.sock', 'pid'].filter((n) => existsSync(join(dir, n)));
      await waitUntil(() => left().length === 0, { what: () => `removal of ${left()}` });
      await waitUntil(() => ended(pid), { what: () => `the end of process ${pid}` });
    },
  );
});

describe('SIGTERM', () => {
  it('loses no write that was acknowledged', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: 64 * MIB });
    const client = await NbdClient.connect({
      address: { type: 'unix', path: served.socketPath },
      exportName: 'disk',
      connections: 1,
    });
    scope.defer(() => client.close());
    const length = 4096;
    const blocks = (64 * MIB) / length;
    const done = new Set<number>();
    // It ends by an error only: there is always a write under way when the daemon ends.
    const write = async (lane: number): Promise<void> => {
      for (let at = lane; ; at = (at + 8) % blocks) {
        await client.write(at * length, patternBytes(length, at + 1));
        done.add(at);
      }
    };
    const lanes = Array.from({ length: 8 }, (_, lane) => write(lane).catch(() => undefined));
    await waitUntil(() => done.size >= 100, { what: () => 'the first hundred writes' });
    expect((await served.daemon.stop()).code).toBe(0);
    await client.close();
    await Promise.all(lanes);
    const image = await readFile(served.path);
    const lost = [...done].filter(
      (at) => !image.subarray(at * length, (at + 1) * length).equals(patternBytes(length, at + 1)),
    );
    expect(lost).toEqual([]);
    expect(existsSync(served.socketPath)).toBe(false);
  });
});

describe('a daemon that nobody can reach', () => {
  it.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)(
    'stays until %s ends it in order',
    async (signal) => {
      const scope = testScope();
      const pidfile = join(await scope.tempDir(), 'pid');
      const { program, args } = daemonCommand();
      const options = ['--chardev', 'stdio,id=c', '--monitor', 'c', '--pidfile', pidfile];
      const child = spawnTracked(program, [...args, ...options], { stdio: 'ignore' });
      const ended = new Promise((resolve) => child.once('exit', (...how) => resolve(how)));
      await waitUntil(() => existsSync(pidfile), { what: () => 'the pid file' });
      // Its standard input is at its end. Who ends of itself does not get as far as removing the file.
      child.kill(signal);
      expect(await ended).toEqual([0, null]);
      expect(existsSync(pidfile)).toBe(false);
    },
  );
});

describe('an option that fails', () => {
  it.each([
    [['--blockdev', 'null-co'], "'node-name' must be specified for the root node"],
    [['--chardev', 'stdio,id=a', '--chardev', 'stdio,id=b'], 'cannot use stdio by multiple'],
    [['--pidfile', '/nowhere/pid'], 'cannot create PID file: No such file or directory'],
    [
      ['--nbd-server', 'addr.type=unix,addr.path=/nowhere/nbd'],
      'Failed to bind socket to /nowhere/nbd: No such file or directory',
    ],
    [
      ['--nbd-server', 'addr.type=inet,addr.host=nohost.invalid,addr.port=0'],
      /Name or service not known|Temporary failure in name resolution/,
    ],
  ])('says so: %j', async (options, text) => {
    const { program, args } = daemonCommand();
    const { code, stderr } = await tryPeer(program, [...args, ...options]);
    expect(code).toBe(1);
    expect(stderr).toMatch(text);
  });

  it.each([[], ['--daemonize']])(
    'is told in one line, with status 1, and leaves nothing: %j',
    async (...more) => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const { program, args } = daemonCommand();
      const [nbd, pidfile] = ['nbd.sock', 'pid'].map((n) => join(dir, n));
      const result = await tryPeer(program, [
        ...[...args, ...more, '--pidfile', String(pidfile)],
        ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
        ...['--export', 'type=nbd,id=e,node-name=absent'],
      ]);
      expect(result.code).toBe(1);
      const told = result.stderr.split('\n').filter((line) => line !== '');
      expect(told).toEqual([expect.stringContaining('absent')]);
      expect([nbd, pidfile].filter((path) => existsSync(String(path)))).toEqual([]);
    },
  );

  it('leaves the socket and the pid file of another daemon alone', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const { program, args } = daemonCommand();
    const pidfile = join(served.daemon.dir, 'pid');
    for (const options of [
      ['--nbd-server', `addr.type=unix,addr.path=${served.socketPath}`],
      ['--pidfile', pidfile],
    ]) {
      expect((await tryPeer(program, [...args, ...options])).code).toBe(1);
    }
    expect(Number(await readFile(pidfile, 'utf8'))).toBe(served.daemon.pid);
    expect(Number((await runPeer('nbdinfo', ['--size', served.uri])).stdout)).toBe(MIB);
  });
});

interface NbdServer {
  readonly connections: readonly {
    readonly 'requests-in-flight': number;
    readonly 'written-bytes': number;
  }[];
}

describe('an end that can not be in order', () => {
  it('is one with status 1, and the client that it costs something gets an error', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = await imageIn(dir);
    const socket = join(dir, 'nbd.sock');
    const daemon = await startDaemon(
      scope,
      [
        ...['--object', 'throttle-group,id=g,limits.bps-total=1000'],
        ...['--blockdev', `driver=file,node-name=f,filename=${path}`],
        ...['--blockdev', 'driver=throttle,node-name=disk,throttle-group=g,file=f'],
        ...['--nbd-server', `addr.type=unix,addr.path=${socket}`, ...exported],
      ],
      { mayFail: true },
    );
    const uri = `nbd+unix:///disk?socket=${socket}`;
    const write = tryPeer('qemu-io', ['-f', 'raw', '-c', 'write 0 1M', '-c', 'write 0 1M', uri]);
    const qmp = await daemon.qmp(scope);
    // The first write goes through, and the second waits for a quarter of an hour.
    const waits = async (): Promise<boolean> => {
      const { connections } = await qmp.execute<NbdServer>('query-nbd-server');
      const [first] = connections;
      return first?.['written-bytes'] === MIB && first['requests-in-flight'] === 1;
    };
    await waitUntil(waits, { what: () => 'the second write' });
    expect(await daemon.stop()).toMatchObject({ code: 1 });
    expect((await write).stdout).toContain('write failed');
    expect(daemon.log).toContain('gave up ending exports after a while');
    expect(existsSync(socket)).toBe(false);
  });

  it('says of a folder that is not there that it is not there', async () => {
    const scope = testScope();
    const where = join(await scope.tempDir(), 'none', 'x.sock');
    const { program, args } = daemonCommand();
    for (const option of [
      ['--nbd-server', `addr.type=unix,addr.path=${where}`],
      ['--chardev', `socket,id=c,path=${where},server=on,wait=off`],
    ]) {
      const { code, stderr } = await tryPeer(program, [...args, ...option]);
      expect(code).toBe(1);
      expect(stderr).toContain('No such file or directory');
      expect(stderr).not.toContain('Permission denied');
    }
  });
});
