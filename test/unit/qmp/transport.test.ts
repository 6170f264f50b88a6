// SPDX-License-Identifier: MIT
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import {
  mkdtemp,
  readdir,
  readFile,
  readlink,
  realpath,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createWebSocketStream, WebSocket } from 'ws';
import { CHARDEV_WAITING_MAX } from '../../../src/base/limits.js';
import type { BackendOptions } from '../../../src/qmp/transport/chardev-set.js';
import { QmpPeer, TestServer, unixServer } from './qmp-peer.js';

let folder: string;
let server: TestServer;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'diskferry-chardev-'));
  server = new TestServer();
});
afterEach(async () => {
  await server.close();
  await rm(folder, { recursive: true });
});

function tcpServer(host: string, more: object = {}): BackendOptions {
  return {
    type: 'socket',
    data: { addr: { type: 'inet', data: { host, port: '0' } }, ...more },
  };
}

function filename(id: string): string {
  return server.chardevs.infos().find((info) => info.label === id)?.filename ?? '';
}

function portOf(id: string): number {
  return Number(/:(\d+),server=on/.exec(filename(id))?.[1]);
}

async function expectWorks(peer: QmpPeer): Promise<void> {
  await peer.negotiate();
  expect((await peer.ask('echo', { text: 'a' })).return).toBe('a');
}

/** What a process leaves that was killed: a socket file on which nobody listens. */
function leaveSocketBehind(path: string): void {
  const bind = `import socket; socket.socket(socket.AF_UNIX).bind(${JSON.stringify(path)})`;
  execFileSync('python3', ['-c', bind]);
}

describe('a listening socket', () => {
  test.each(['127.0.0.1', '::1'])('serves TCP on %s and tells its port', async (host) => {
    await server.listen('m', tcpServer(host));
    const text = host.includes(':') ? `[${host}]` : host;
    expect(filename('m')).toBe(`disconnected:tcp:${text}:${portOf('m')},server=on`);
    const peer = QmpPeer.connect({ host, port: portOf('m') });
    await expectWorks(peer);
    expect(filename('m')).toMatch(/^tcp:.*,server=on <-> /);
    peer.close();
  });

  test('takes the place of a socket file that was left behind, but of nothing else', async () => {
    const path = join(folder, 's');
    leaveSocketBehind(path);
    await server.listen('m', unixServer(path));
    const peer = QmpPeer.connect({ path });
    await expectWorks(peer);
    peer.close();
    const file = join(folder, 'f');
    await writeFile(file, 'precious');
    await expect(server.listen('n', unixServer(file))).rejects.toThrow('Failed to bind socket');
    expect(await readFile(file, 'utf8')).toBe('precious');
    await symlink(file, join(folder, 'link'));
    await expect(server.listen('n', unixServer(join(folder, 'link')))).rejects.toThrow(
      'Failed to bind socket',
    );
  });

  test('leaves a socket alone on which somebody listens', async () => {
    const path = join(folder, 's');
    await server.listen('m', unixServer(path));
    await expect(server.listen('n', unixServer(path))).rejects.toThrow('Failed to bind socket');
    const peer = QmpPeer.connect({ path });
    await expectWorks(peer);
    peer.close();
  });

  test('removes its file at the end', async () => {
    const path = join(folder, 's');
    await server.listen('m', unixServer(path));
    expect((await stat(path)).isSocket()).toBe(true);
    await server.chardevs.close(10);
    await expect(stat(path)).rejects.toThrow('ENOENT');
  });

  test('refuses a path that is too long and a port that is none', async () => {
    await expect(
      server.chardevs.add('m', unixServer(join(folder, 'x'.repeat(120)))),
    ).rejects.toThrow('is too long');
    const addr = { type: 'inet', data: { host: '127.0.0.1', port: '70000' } } as const;
    await expect(server.chardevs.add('m', { type: 'socket', data: { addr } })).rejects.toThrow(
      "port '70000' must be a number from 0 to 65535",
    );
    expect(server.chardevs.infos()).toEqual([]);
  });

  test('with wait is ready when the first client is there', async () => {
    const path = join(folder, 's');
    let isReady = false;
    const ready = server.listen('m', unixServer(path, { wait: true })).then(() => {
      isReady = true;
    });
    while (filename('m') === '' || !(await exists(path))) await sleep(1);
    expect(isReady).toBe(false);
    const peer = QmpPeer.connect({ path });
    await ready;
    await expectWorks(peer);
    peer.close();
  });

  test('that waits can be closed', async () => {
    const path = join(folder, 's');
    const ready = server.listen('m', unixServer(path, { wait: true }));
    const failed = expect(ready).rejects.toThrow('was closed');
    while (!(await exists(path))) await sleep(1);
    await server.chardevs.close(10);
    await failed;
  });

  test('turns clients away that it has no place for', async () => {
    const path = join(folder, 's');
    await server.listen('m', unixServer(path));
    const peers = [QmpPeer.connect({ path })];
    await peers[0]?.next();
    for (let n = 0; n <= CHARDEV_WAITING_MAX; n++) peers.push(QmpPeer.connect({ path }));
    expect(await peers.at(-1)?.next()).toEqual({ event: 'connection over' });
    for (const peer of peers) peer.close();
  });

  test('speaks WebSocket when told to, and nothing else then', async () => {
    await server.listen('m', tcpServer('127.0.0.1', { websocket: true }));
    expect(filename('m')).toMatch(/^disconnected:websocket:127.0.0.1:/);
    const url = `127.0.0.1:${portOf('m')}`;
    const answer = await fetch(`http://${url}/`);
    expect(answer.status).toBe(426);
    const websocket = new WebSocket(`ws://${url}/`, ['binary']);
    const peer = new QmpPeer(createWebSocketStream(websocket));
    await expectWorks(peer);
    expect(websocket.protocol).toBe('binary');
    const second = new QmpPeer(createWebSocketStream(new WebSocket(`ws://${url}/`)));
    websocket.close();
    await expectWorks(second);
    second.close();
  });
});

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

describe('a connecting socket', () => {
  let listener: Server;
  const clients: Socket[] = [];
  afterEach(() => {
    for (const socket of clients.splice(0)) socket.destroy();
    listener?.close();
  });
  const connecting = (path: string, more: object = {}): BackendOptions =>
    unixServer(path, { server: false, ...more });
  async function listenOn(path: string): Promise<void> {
    listener = createServer((socket) => clients.push(socket));
    await new Promise<void>((resolve) => listener.listen(path, resolve));
  }
  async function nextClient(): Promise<QmpPeer> {
    while (clients.length === 0) await sleep(5);
    return new QmpPeer(clients.shift() as Socket);
  }

  test('serves whom it connects to', async () => {
    const path = join(folder, 's');
    await listenOn(path);
    await server.listen('m', connecting(path));
    const peer = await nextClient();
    await expectWorks(peer);
    expect(filename('m')).toBe(`unix:${path}`);
    peer.close();
  });

  test('fails when nobody is there, unless it shall try again', async () => {
    const path = join(folder, 's');
    await expect(server.chardevs.add('m', connecting(path))).rejects.toThrow(
      `Failed to connect to '${path}'`,
    );
    await server.listen('m', connecting(path, { reconnect: 1 }));
    await listenOn(path);
    const peer = await nextClient();
    await expectWorks(peer);
    peer.close();
    await expectWorks(await nextClient());
  });

  test('has no options of the listening side', async () => {
    const path = join(folder, 's');
    await expect(server.chardevs.add('m', connecting(path, { wait: false }))).rejects.toThrow(
      "'wait' option is incompatible with socket in client connect mode",
    );
    await expect(server.chardevs.add('m', connecting(path, { websocket: true }))).rejects.toThrow(
      'Websocket client is not implemented',
    );
    await expect(server.chardevs.add('m', unixServer(path, { reconnect: 1 }))).rejects.toThrow(
      "'reconnect' option is incompatible with socket in server listen mode",
    );
  });
});

describe('other devices', () => {
  test('stdio serves the streams it was given', async () => {
    const input = new PassThrough();
    const output = new PassThrough();
    server = new TestServer({ stdio: { input, output } });
    await server.listen('m', { type: 'stdio', data: {} });
    const peer = new QmpPeer(output);
    await peer.next();
    input.write('{"execute": "qmp_capabilities"}{"execute": "echo", "arguments": {"text": "a"}}');
    expect(await peer.next()).toEqual({ return: {} });
    expect(await peer.next()).toEqual({ return: 'a' });
    expect(filename('m')).toBe('stdio');
    await expect(server.chardevs.add('n', { type: 'stdio', data: {} })).rejects.toThrow(
      'cannot use stdio by multiple character devices',
    );
    expect(filename('n')).toBe('');
  });

  test('pipe serves a pair of FIFOs, and closes them', async () => {
    const path = join(folder, 'p');
    execFileSync('mkfifo', [`${path}.in`, `${path}.out`]);
    await server.listen('m', { type: 'pipe', data: { device: path } });
    const out = openSync(`${path}.out`, constants.O_RDWR | constants.O_NONBLOCK);
    const into = openSync(`${path}.in`, constants.O_RDWR | constants.O_NONBLOCK);
    writeSync(into, '{"execute": "qmp_capabilities"}');
    let text = '';
    const bytes = Buffer.alloc(4096);
    while (!text.includes('"return"')) {
      try {
        text += bytes.toString('utf8', 0, readSync(out, bytes));
      } catch {
        await sleep(2);
      }
    }
    expect(text).toMatch(/^\{"QMP": /);
    closeSync(out);
    closeSync(into);
    await expect(
      server.chardevs.add('n', { type: 'pipe', data: { device: join(folder, 'none') } }),
    ).rejects.toThrow('Could not open');
  });

  test('pipe refuses what is none, and leaves no descriptor open', async () => {
    const device = join(folder, 'plain');
    await writeFile(device, 'text');
    const add = () => server.chardevs.add('n', { type: 'pipe', data: { device } });
    await expect(add()).rejects.toThrow(`'${device}' is not a pipe`);
    const links = await Promise.allSettled(
      (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`)),
    );
    expect(links).not.toContainEqual({ status: 'fulfilled', value: await realpath(device) });
  });

  test('file gets the output, and adds to it when told to', async () => {
    const out = join(folder, 'f');
    await writeFile(out, 'before\n');
    await server.listen('m', { type: 'file', data: { out, append: true } });
    await server.chardevs.close(100);
    expect(await readFile(out, 'utf8')).toMatch(/^before\n\{"QMP"/);
    await server.listen('m', { type: 'file', data: { out } });
    await server.chardevs.close(100);
    expect(await readFile(out, 'utf8')).toMatch(/^\{"QMP"/);
  });

  test('file takes commands from another file', async () => {
    const out = join(folder, 'f');
    const source = join(folder, 'in');
    await writeFile(source, '{"execute": "qmp_capabilities"}');
    await server.listen('m', { type: 'file', data: { out, in: source } });
    while (!(await readFile(out, 'utf8')).includes('"return"')) await sleep(2);
    const none = { type: 'file', data: { out, in: join(folder, 'none') } } as const;
    await expect(server.chardevs.add('n', none)).rejects.toThrow('Could not open');
  });

  test('a log file gets a copy of what clients are sent', async () => {
    const path = join(folder, 's');
    const logfile = join(folder, 'log');
    await server.listen('m', unixServer(path, { logfile }));
    const peer = QmpPeer.connect({ path });
    await expectWorks(peer);
    peer.close();
    await server.chardevs.close(100);
    expect(await readFile(logfile, 'utf8')).toBe(peer.text);
  });
});

describe('commands', () => {
  test('add, list, change and remove devices', async () => {
    const path = join(folder, 's');
    await server.listen('m', unixServer(path));
    const peer = QmpPeer.connect({ path });
    await peer.negotiate();
    const add = (id: string, backend: unknown) => peer.ask('chardev-add', { id, backend });
    expect(await add('c', { type: 'null', data: {} })).toEqual({ return: {} });
    expect((await add('c', { type: 'null', data: {} })).error?.desc).toBe(
      "Chardev with id 'c' already exists",
    );
    expect((await add('d', { type: 'file', data: { out: '/nonexistent/f' } })).error?.desc).toBe(
      "Failed to add chardev 'd': Could not open '/nonexistent/f': No such file or directory",
    );
    expect((await peer.ask('query-chardev')).return).toEqual([
      { label: 'm', filename: `unix:${path},server=on`, 'frontend-open': true },
      { label: 'c', filename: 'null', 'frontend-open': false },
    ]);
    const file = { type: 'file', data: { out: join(folder, 'f') } };
    expect(await peer.ask('chardev-change', { id: 'c', backend: file })).toEqual({ return: {} });
    expect(filename('c')).toBe('file');
    const errorOf = async (name: string, args: object) => (await peer.ask(name, args)).error?.desc;
    expect(await errorOf('chardev-change', { id: 'x', backend: file })).toBe(
      "Chardev 'x' does not exist",
    );
    expect(await errorOf('chardev-change', { id: 'm', backend: file })).toBe(
      'Chardev user does not support chardev hotswap',
    );
    expect(await errorOf('chardev-remove', { id: 'm' })).toBe("Chardev 'm' is busy");
    expect(await errorOf('chardev-remove', { id: 'x' })).toBe("Chardev 'x' not found");
    expect(await errorOf('chardev-remove', { id: 'c' })).toBeUndefined();
    expect(server.chardevs.infos()).toHaveLength(1);
    expect((await peer.ask('query-chardev-backends')).return).toContainEqual({ name: 'socket' });
    peer.close();
  });

  test('a device has one user', async () => {
    await server.listen('m', { type: 'null', data: {} });
    expect(() =>
      server.chardevs.get('m').attach({ opened: () => undefined, finish: async () => undefined }),
    ).toThrow("Device 'm' is in use");
  });
});
