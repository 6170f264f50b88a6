// SPDX-License-Identifier: MIT
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { rootLog, setRootLog } from '../../../../src/base/log.js';
import {
  REQ_FUA,
  REQ_LEND,
  REQ_LEND_ONCE,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from '../../../../src/block/block-driver.js';
import { nbdDefinition } from '../../../../src/block/driver/nbd.js';
import { DiskFile } from '../../../../src/sys/file.js';
import { blockDriverSuite, type SuiteNode } from '../../../suite/block-driver.suite.js';
import { bytes, FakeNbdPeer, type FakePeerOptions } from '../../../support/fake-nbd-peer.js';
import { MIB } from '../../../support/images.js';
import { Scope, testScope } from '../../../support/temp.js';
import { localGraph, READER, type UsedNode, useNode } from './test-graph.js';

const { u32 } = bytes;
const WAITS = { 'reconnect-delay': 60 };

async function open(
  scope: Scope,
  peerOptions: FakePeerOptions = {},
  options: Record<string, unknown> = {},
): Promise<UsedNode & { peer: FakeNbdPeer }> {
  const peer = await FakeNbdPeer.start(scope, peerOptions);
  const graph = localGraph();
  graph.drivers.register(nbdDefinition);
  const server = { type: 'unix', path: peer.path };
  const permissions = options['read-only'] || options['auto-read-only'] ? READER : undefined;
  const used = await useNode({ driver: 'nbd', server, ...options }, permissions, graph);
  return { ...used, peer };
}

/** An empty node over a fake server, for the suite. */
async function suiteNode(options: FakePeerOptions): Promise<SuiteNode> {
  const scope = new Scope();
  const used = await open(scope, options);
  const close = async (): Promise<void> => {
    await used.close();
    await scope.close();
  };
  return { node: used.node, close };
}

const CONTEXTS = ['base:allocation'];
const FIXED = { resizes: false };
const able = (size: number) => suiteNode({ size, replies: 'extended', contexts: CONTEXTS });
blockDriverSuite('nbd with a server that can do all', able, FIXED);

const plain = (size: number) => suiteNode({ size, contexts: CONTEXTS });
blockDriverSuite('nbd with structured replies', plain, FIXED);

const BLOCK_SIZES = [4096, 4096, 65_536] as const;
const poor = (size: number) =>
  suiteNode({ size, flags: 1, replies: 'simple', blockSizes: BLOCK_SIZES });
blockDriverSuite('nbd with a server of large blocks that can do little', poor, FIXED);

describe('nbd', () => {
  it('passes flags on', async () => {
    const scope = testScope();
    const { node, peer, close } = await open(scope, {}, { discard: 'unmap' });
    await node.write(0, Buffer.alloc(512), REQ_FUA);
    await node.writeZeroes(0, 4096);
    await node.writeZeroes(0, 4096, REQ_MAY_UNMAP | REQ_FUA);
    await node.writeZeroes(0, 4096, REQ_NO_FALLBACK);
    await node.discard(0, 4096);
    await node.flush();
    await close();
    expect(peer.requests.slice(0, 6).map(({ type, flags }) => [type, flags])).toEqual([
      [1, 1],
      [6, 2],
      [6, 1],
      [6, 0x12],
      [4, 0],
      [3, 0],
    ]);
  });

  it('asks for an alignment of 512 where an old server tells nothing', async () => {
    const scope = testScope();
    const old = await open(scope, { replies: 'simple' });
    expect(old.node.limits.requestAlignment).toBe(512);
    await old.close();
    const odd = await open(scope, { replies: 'simple', size: 1000 });
    expect(odd.node.limits.requestAlignment).toBe(1);
    await odd.close();
  });

  it('maps extents of base:allocation', async () => {
    const scope = testScope();
    const { node, close } = await open(scope, {
      contexts: ['base:allocation'],
      onRequest: (connection, request) => {
        if (request.type === 7) {
          const flags = u32(Math.floor(request.offset / 512));
          connection.chunk(request, 5, Buffer.concat([u32(1), u32(512), flags]));
        }
        return request.type === 7;
      },
    });
    const always = STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    const expected = [STATUS_DATA, 0, STATUS_DATA | STATUS_ZERO, STATUS_ZERO];
    for (const [index, flags] of expected.entries()) {
      const extent = await node.blockStatus(index * 512, 4096);
      expect(extent).toEqual({ length: 512, flags: flags | always, hostOffset: index * 512 });
    }
    await close();
  });

  it('shows a dirty area as a hole with x-dirty-bitmap, as QEMU does', async () => {
    const scope = testScope();
    const name = 'qemu:dirty-bitmap:b0';
    const { node, close } = await open(
      scope,
      {
        contexts: [name],
        onRequest: (connection, request) => {
          if (request.type !== 7) return false;
          connection.chunk(request, 5, Buffer.concat([u32(1), u32(65_536), u32(1)]));
          return true;
        },
      },
      { 'x-dirty-bitmap': name },
    );
    const extent = await node.blockStatus(0, 1 << 20);
    expect(extent.length).toBe(65_536);
    expect(extent.flags & (STATUS_DATA | STATUS_ZERO)).toBe(0);
    await close();
  });

  it('refuses an x-dirty-bitmap that the server does not have', async () => {
    const scope = testScope();
    await expect(open(scope, {}, { 'x-dirty-bitmap': 'qemu:dirty-bitmap:b0' })).rejects.toThrow(
      'requested x-dirty-bitmap qemu:dirty-bitmap:b0 not found',
    );
  });

  it('takes an empty tls-hostname, as managers pass it, and no other', async () => {
    const scope = testScope();
    const { close } = await open(scope, {}, { 'tls-hostname': '' });
    await close();
    await expect(open(scope, {}, { 'tls-hostname': 'storage1' })).rejects.toThrow(
      "tls-hostname 'storage1' without TLS checks nothing",
    );
  });

  it('refuses to write a read-only export unless auto-read-only is set', async () => {
    const scope = testScope();
    const flags = 0xcef;
    await expect(open(scope, { flags })).rejects.toThrow('request for write access denied');
    const reader = await open(scope, { flags }, { 'read-only': true });
    expect(reader.node.readOnly).toBe(true);
    await reader.close();
    const auto = await open(scope, { flags }, { 'auto-read-only': true });
    expect(auto.node.readOnly).toBe(true);
    await auto.close();
  });

  it('shows its address as QEMU does', async () => {
    const scope = testScope();
    const { node, peer, close } = await open(scope, {}, { export: 'disk' });
    expect(node.driver.filename).toBe(`nbd+unix:///disk?socket=${peer.path}`);
    await close();
  });

  it('refuses ports and descriptors that are no numbers', async () => {
    const graph = localGraph();
    graph.drivers.register(nbdDefinition);
    const refused = (server: Record<string, unknown>) =>
      expect(useNode({ driver: 'nbd', server }, undefined, graph)).rejects;
    await refused({ type: 'inet', host: 'h', port: 'x' }).toThrow("'x' is not a valid port number");
    await refused({ type: 'inet', host: 'h', port: '70000' }).toThrow('valid port');
    await refused({ type: 'fd', str: 'monitor' }).toThrow("'monitor' is not a valid fd number");
  });

  it('tells in the log and in the error why a lying server was dropped', async () => {
    const scope = testScope();
    const lines: string[] = [];
    const before = rootLog();
    setRootLog(pino({ level: 'warn' }, { write: (line) => void lines.push(line) }));
    scope.defer(() => setRootLog(before));
    const { node, close } = await open(
      scope,
      {
        onRequest: (connection, request) => {
          if (request.type === 0) connection.send(Buffer.alloc(16));
          return request.type === 0;
        },
      },
      { export: 'disk' },
    );
    await expect(node.read(0, Buffer.alloc(512))).rejects.toThrow(/was dropped: .*invalid magic/);
    expect(lines).toHaveLength(1);
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 40,
      node: node.name,
      event: 'nbd.client.failed',
      export: 'disk',
      msg: expect.stringMatching(/was dropped: .*invalid magic/),
    });
    await close();
  });

  it('fails with what the server says', async () => {
    const scope = testScope();
    const { node, close } = await open(scope, {
      onRequest: (connection, request) => {
        if (request.type === 1) connection.simpleReply(request, 28);
        return request.type === 1;
      },
    });
    await expect(node.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: 'DF_NO_SPACE' });
    await close();
  });
});

describe('writes of what a file has', () => {
  const KIB = 1024;
  const content = Buffer.alloc(512 * KIB, 0x5a);

  interface Passed {
    readonly peer: FakeNbdPeer;
    readonly node: UsedNode['node'];
    readonly pass: (length: number, flags: number) => Promise<number>;
  }

  async function passing(
    options: Record<string, unknown> = {},
    peerOptions: FakePeerOptions = {},
  ): Promise<Passed> {
    const scope = testScope();
    const { node, peer, close } = await open(
      scope,
      { size: MIB, contexts: CONTEXTS, ...peerOptions },
      options,
    );
    scope.defer(close);
    const path = join(await scope.tempDir(), 'source');
    await writeFile(path, content);
    const file = await DiskFile.open(path, { writable: true, direct: false });
    scope.defer(() => file.close());
    const pass = async (length: number, flags: number): Promise<number> =>
      node.writeFrom(4096, { file, offset: 0, length }, flags);
    return { peer, node, pass };
  }

  it('are one request, and count as a write of the node', async () => {
    const { peer, node, pass } = await passing();
    expect(await pass(512 * KIB, REQ_LEND)).toBe(512 * KIB);
    expect(peer.requests.map(({ type, offset, length }) => [type, offset, length])).toEqual([
      [1, 4096, 512 * KIB],
    ]);
    expect(peer.memory.subarray(4096, 4096 + content.byteLength).equals(content)).toBe(true);
    expect(node.stats.write.bytes).toBe(512 * KIB);
  });

  it('pass FUA on', async () => {
    const { peer, pass } = await passing();
    await pass(64 * KIB, REQ_LEND | REQ_FUA);
    expect(peer.requests[0]?.flags).toBe(1);
  });

  it.each([
    ['short ones', 64 * KIB - 1, REQ_LEND, {}, {}],
    ['those whose bytes may not be lent', 64 * KIB, 0, {}, {}],
    ['those once, where a lost server is waited for', 64 * KIB, REQ_LEND_ONCE, WAITS, {}],
    ['what is looked through for zeroes', 64 * KIB, REQ_LEND, { 'detect-zeroes': 'on' }, {}],
    ['FUA that the server does not know', 64 * KIB, REQ_LEND | REQ_FUA, {}, { flags: 5 }],
  ])('are left to be copied: %s', async (_name, length, flags, options, peerOptions) => {
    const { peer, pass } = await passing(options, peerOptions);
    expect(await pass(length, flags)).toBe(0);
    expect(peer.requests).toEqual([]);
  });

  it('once fail at once where the server is not waited for', async () => {
    const { peer, pass } = await passing(
      {},
      {
        onRequest: (connection) => {
          connection.socket.destroy();
          return true;
        },
      },
    );
    await expect(pass(64 * KIB, REQ_LEND_ONCE)).rejects.toThrow('lost the NBD server');
    expect(peer.requests.length).toBe(1);
  });

  it('are sent again otherwise', async () => {
    let lost = false;
    const { peer, pass } = await passing(WAITS, {
      onRequest: (connection) => {
        if (lost) return false;
        lost = true;
        connection.socket.destroy();
        return true;
      },
    });
    expect(await pass(64 * KIB, REQ_LEND)).toBe(64 * KIB);
    expect(peer.requests.length).toBe(2);
  });
});
