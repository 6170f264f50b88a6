// SPDX-License-Identifier: MIT
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  QMP_OOB_RUNNING_MAX,
  QMP_QUEUE_MAX,
  QMP_TOKENS_MAX,
  QMP_TURN_BYTES,
} from '../../../src/base/limits.js';
import { NOTE, QmpPeer, TestServer, unixServer, VERSION } from './qmp-peer.js';

let folder: string;
let path: string;
let server: TestServer;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'diskferry-qmp-'));
  path = join(folder, 'm.sock');
  server = new TestServer();
});
afterEach(async () => {
  await server.close();
  await rm(folder, { recursive: true });
});

async function client(enable: string[] = []): Promise<QmpPeer> {
  const peer = QmpPeer.connect({ path });
  await peer.negotiate(enable);
  return peer;
}

/** Counts the turns of the event loop until `stop`. */
function countTurns(): { stop(): number } {
  let turns = 0;
  let isOver = false;
  const count = () => {
    turns++;
    if (!isOver) setImmediate(count);
  };
  setImmediate(count);
  return {
    stop() {
      isOver = true;
      return turns;
    },
  };
}

describe('a session', () => {
  test('starts with version and capabilities', async () => {
    await server.listen('m', unixServer(path));
    const peer = QmpPeer.connect({ path });
    expect(await peer.next()).toEqual({ QMP: { version: VERSION, capabilities: ['oob'] } });
    expect(peer.text.endsWith('\r\n')).toBe(true);
    peer.close();
  });

  test('runs nothing before capabilities are negotiated, and negotiates once', async () => {
    await server.listen('m', unixServer(path));
    const peer = QmpPeer.connect({ path });
    await peer.next();
    expect(await peer.ask('query-version')).toEqual({
      error: {
        class: 'CommandNotFound',
        desc: "Expecting capabilities negotiation with 'qmp_capabilities'",
      },
    });
    expect(await peer.ask('qmp_capabilities')).toEqual({ return: {} });
    expect((await peer.ask('qmp_capabilities')).error?.desc).toBe(
      'Capabilities negotiation is already complete, command ignored',
    );
    expect((await peer.ask('query-version')).return).toEqual(VERSION);
    peer.close();
  });

  test('gives back an id of any type', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    for (const id of [null, 0, 'x', [1, { a: true }], { b: [] }, false]) {
      expect((await peer.ask('echo', { text: 'a' }, { id })).id).toEqual(id);
    }
    peer.send('{"execute": "echo", "arguments": {"text": "a"}, "id": 18446744073709551615}');
    expect((await peer.next()).id).toBe(18446744073709551615n);
    peer.close();
  });

  test('hands on 64-bit integers exactly', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    peer.send('{"execute": "echo", "arguments": {"speed": 9223372036853727232}}');
    expect((await peer.next()).return).toBe('9223372036853727232');
    peer.close();
  });

  test('answers in the order of the commands, however they arrive', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    const texts = Array.from({ length: 500 }, (_, n) => `t${n}`);
    peer.send(
      texts.map((text) => JSON.stringify({ execute: 'echo', arguments: { text } })).join(''),
    );
    for (const text of texts) expect(await peer.next()).toEqual({ return: text });
    peer.close();
  });

  test('tells of a bug in a command without falling over', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    expect(await peer.ask('fail')).toEqual({ error: { class: 'GenericError', desc: 'a bug' } });
    expect((await peer.ask('echo', { text: 'b' })).return).toBe('b');
    peer.close();
  });

  test('goes on after garbage', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    peer.send('{"execute": "echo" %%%\u00ff\n');
    expect((await peer.next()).error?.desc).toMatch(/^JSON parse error, stray/);
    expect((await peer.ask('echo', { text: 'b' })).return).toBe('b');
    peer.close();
  });

  test('answers a message of too many tokens once, and what comes behind it', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    peer.send(`{"execute": "echo", "id": [1${',1'.repeat(QMP_TOKENS_MAX)}]}`);
    expect((await peer.next()).error?.desc).toBe('JSON token count limit exceeded');
    expect((await peer.ask('echo', { text: 'b' })).return).toBe('b');
    peer.close();
  });

  test('lets others have their turn while it parses what one client sent', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    const turns = countTurns();
    const length = 40 * QMP_TURN_BYTES;
    peer.send(`${' '.repeat(length)}{"execute": "echo", "arguments": {"text": "a"}}`);
    expect((await peer.next()).return).toBe('a');
    expect(turns.stop()).toBeGreaterThanOrEqual(length / QMP_TURN_BYTES);
    peer.close();
  });

  test('indents when pretty', async () => {
    await server.listen('m', unixServer(path), { pretty: true });
    const peer = await client();
    expect(peer.text).toContain('{\r\n    "QMP": {\r\n        "version"');
    peer.close();
  });

  test('answers a client that has ended its side, then ends too', async () => {
    await server.listen('m', unixServer(path));
    const peer = QmpPeer.connect({ path, allowHalfOpen: true });
    peer.stream.end(
      '{"execute": "qmp_capabilities"}{"execute": "echo", "arguments": {"text": "z"}}',
    );
    await peer.next();
    expect(await peer.next()).toEqual({ return: {} });
    expect(await peer.next()).toEqual({ return: 'z' });
    expect(await peer.next()).toEqual({ event: 'connection over' });
  });

  test('quit is answered', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    expect(await peer.ask('quit')).toEqual({ return: {} });
    while (server.quits === 0) await sleep(1);
    peer.close();
  });
});

describe('the end', () => {
  test('waits for the answer to what runs, and takes nothing new', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    peer.send('{"execute": "hold"}{"execute": "echo", "arguments": {"text": "never"}}');
    while (server.held.length === 0) await sleep(1);
    const closed = server.chardevs.close(60_000);
    server.held[0]?.();
    expect(await peer.next()).toEqual({ return: {} });
    expect(await peer.next()).toEqual({ event: 'connection over' });
    await closed;
    expect(server.ran).toEqual([]);
  });

  test('does not wait longer than it may', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client();
    peer.send('{"execute": "hold"}');
    while (server.held.length === 0) await sleep(1);
    await server.chardevs.close(20);
    expect(await peer.next()).toEqual({ event: 'connection over' });
  });

  test('of a monitor still lets events through', async () => {
    const monitor = await server.listen('m', unixServer(path));
    const peer = await client();
    monitor.stop();
    server.events.emit(NOTE, { text: 'x' });
    expect((await peer.next()).event).toBe('NOTE');
    peer.close();
  });
});

describe('clients', () => {
  test('come one after the other', async () => {
    await server.listen('m', unixServer(path));
    const first = await client();
    const second = QmpPeer.connect({ path });
    expect((await first.ask('echo', { text: 'a' })).return).toBe('a');
    expect(second.isQuiet).toBe(true);
    first.close();
    await second.negotiate();
    expect((await second.ask('echo', { text: 'b' })).return).toBe('b');
    second.close();
  });

  test('may leave in the middle of a command', async () => {
    await server.listen('m', unixServer(path));
    const first = await client();
    first.send('{"execute": "hold"}{"execute": "echo", "arguments": {"text": "never"}}');
    while (server.held.length === 0) await sleep(1);
    first.close();
    const second = await client();
    server.held[0]?.();
    expect((await second.ask('echo', { text: 'b' })).return).toBe('b');
    expect(server.ran).toEqual(['b']);
    second.close();
  });

  test('of several monitors do not wait for each other', async () => {
    await server.listen('m', unixServer(path));
    await server.listen('n', unixServer(join(folder, 'n.sock')));
    const first = await client();
    const second = QmpPeer.connect({ path: join(folder, 'n.sock') });
    await second.negotiate();
    first.send('{"execute": "hold"}');
    while (server.held.length === 0) await sleep(1);
    expect((await second.ask('echo', { text: 'b' })).return).toBe('b');
    server.held[0]?.();
    expect(await first.next()).toEqual({ return: {} });
    first.close();
    second.close();
  });
});

describe('out of band', () => {
  test('commands overtake one that waits', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client(['oob']);
    peer.send(
      '{"execute": "hold", "id": 1}{"execute": "echo", "id": 2, "arguments": {"text": "a"}}',
    );
    peer.send('{"exec-oob": "echo", "id": 3, "arguments": {"text": "b"}}');
    expect(await peer.next()).toEqual({ return: 'b', id: 3 });
    server.held[0]?.();
    expect(await peer.next()).toEqual({ return: {}, id: 1 });
    expect(await peer.next()).toEqual({ return: 'a', id: 2 });
    peer.close();
  });

  test('is refused for commands that can not, and for clients that have not asked', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client(['oob']);
    peer.send('{"exec-oob": "hold"}');
    expect((await peer.next()).error?.desc).toBe('The command hold does not support OOB');
    peer.close();
    const plain = await client();
    plain.send('{"exec-oob": "echo"}');
    expect((await plain.next()).error?.desc).toBe("QMP input member 'exec-oob' is unexpected");
    plain.close();
  });

  test('is not read any more when the queue is full', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client(['oob']);
    peer.send('{"execute": "hold"}');
    for (let n = 0; n < QMP_QUEUE_MAX; n++) {
      peer.send(`{"execute": "echo", "arguments": {"text": "${n}"}}`);
    }
    peer.send('{"exec-oob": "echo", "arguments": {"text": "late"}}');
    while (server.held.length === 0) await sleep(1);
    await sleep(50);
    expect(server.ran).toEqual([]);
    server.held[0]?.();
    expect(await peer.next()).toEqual({ return: {} });
    for (let n = 0; n <= QMP_QUEUE_MAX; n++) await peer.next();
    expect(server.ran).toContain('late');
    peer.close();
  });

  test('commands of one client run in many turns, so that others have theirs', async () => {
    await server.listen('m', unixServer(path));
    const peer = await client(['oob']);
    const turns = countTurns();
    const commands = 20 * QMP_OOB_RUNNING_MAX;
    peer.send('{"exec-oob": "echo", "arguments": {"text": "a"}}'.repeat(commands));
    for (let n = 0; n < commands; n++) expect((await peer.next()).return).toBe('a');
    expect(turns.stop()).toBeGreaterThanOrEqual(commands / QMP_OOB_RUNNING_MAX);
    peer.close();
  });
});

describe('events', () => {
  test('go to all clients that have negotiated, with their time', async () => {
    await server.listen('m', unixServer(path));
    await server.listen('n', unixServer(join(folder, 'n.sock')));
    const first = await client();
    const second = QmpPeer.connect({ path: join(folder, 'n.sock') });
    await second.next();
    server.events.emit(NOTE, { text: 'x' });
    const event = await first.next();
    expect(event).toMatchObject({ event: 'NOTE', data: { text: 'x' } });
    expect(Math.abs((event.timestamp?.seconds ?? 0) - Date.now() / 1000)).toBeLessThan(60);
    expect(await second.ask('qmp_capabilities')).toEqual({ return: {} });
    first.close();
    second.close();
  });

  test('end the session of a client that does not read them, and nobody else notices', async () => {
    await server.listen('m', unixServer(path));
    await server.listen('n', unixServer(join(folder, 'n.sock')));
    const stalled = await client();
    stalled.stream.pause();
    const other = QmpPeer.connect({ path: join(folder, 'n.sock') });
    await other.negotiate();
    const text = 'x'.repeat(1 << 20);
    for (let n = 0; n < 24; n++) {
      server.events.emit(NOTE, { text });
      expect((await other.next()).event).toBe('NOTE');
    }
    const next = await client();
    expect((await next.ask('echo', { text: 'b' })).return).toBe('b');
    for (const peer of [stalled, other, next]) peer.close();
  });
});
