// SPDX-License-Identifier: MIT
/** What images note of the image below them, when its file name alone would open something else. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { runPeer, runPeerJson } from '../support/peers.js';
import { createImage, MIB, qemuContent, qemuIo } from '../support/qcow2.js';
import { type Scope, testScope } from '../support/temp.js';

/**
 * `x` notes no backing image and is opened above `a`, `y` notes `a` and is opened above nothing; `w` is
 * the second half of a file, `inside` the disk in `a`; `m` and `top` lie above `x`.
 */
async function makeImages(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const path = (name: string): string => join(dir, name);
  for (const name of ['a', 'x', 'm', 'top']) await createImage(path(name), MIB);
  await createImage(path('y'), MIB, 'backing_file=a,backing_fmt=qcow2');
  await qemuIo(path('a'), ['write -P 1 0 512k']);
  await qemuIo(path('x'), ['write -P 2 256k 64k']);
  await qemuIo(path('y'), ['write -P 3 128k 64k']);
  await qemuIo(path('m'), ['write -P 4 704k 64k']);
  await qemuIo(path('top'), ['write -P 5 896k 64k']);
  await runPeer('qemu-img', ['create', '-q', '-f', 'raw', path('r'), String(2 * MIB)]);
  await runPeer('qemu-io', ['-f', 'raw', '-c', `write -P 9 ${MIB} 512k`, path('r')]);
  const image = (name: string, backing: string | null): object => ({
    ...{ driver: 'qcow2', 'node-name': name, backing, discard: 'unmap' },
    ...(name === 'top' || name === 'y' ? {} : { 'read-only': true }),
    file: { driver: 'file', filename: path(name) },
  });
  const nodes = [
    image('a', null),
    image('x', 'a'),
    image('m', 'x'),
    image('top', 'm'),
    image('y', null),
    {
      ...{ driver: 'raw', 'node-name': 'w', offset: MIB, size: MIB },
      file: { driver: 'file', filename: path('r') },
    },
    { driver: 'raw', 'node-name': 'inside', 'read-only': true, file: 'a' },
  ];
  return { dir, args: nodes.flatMap((node) => ['--blockdev', JSON.stringify(node)]) };
}

/** The images are closed then, and nobody holds their locks. */
async function end({ qmp }: Pick<Talk, 'qmp'>): Promise<void> {
  await qmp.execute('quit');
  await qmp.closedByPeer();
}

/** What a tool sees that opens the image by its name. */
async function seen({ dir }: Talk, name: string): Promise<string> {
  await runPeer('qemu-img', ['info', '-U', join(dir, name)]);
  return (await qemuContent(join(dir, name), join(dir, 'scratch'))).toString('base64');
}

interface Named {
  readonly 'node-name': string;
  readonly file: string;
  readonly backing_file?: string;
  readonly backing_file_depth: number;
}

/** Names of nodes, their options parsed. */
async function names({ qmp, dir }: Talk): Promise<unknown> {
  const parsed = (name: string | undefined): unknown => {
    const plain = name?.replaceAll(dir, 'DIR');
    return plain?.startsWith('json:') ? JSON.parse(plain.slice('json:'.length)) : plain;
  };
  const nodes = await qmp.execute<Named[]>('query-named-block-nodes');
  return Object.fromEntries(
    nodes
      .filter((node) => !node['node-name'].startsWith('#'))
      .map((node) => [
        node['node-name'],
        [parsed(node.file), parsed(node.backing_file), node.backing_file_depth],
      ]),
  );
}

async function done({ qmp }: Talk, command: string, args: object): Promise<void> {
  await qmp.execute(command, { 'job-id': 'j', ...args });
  const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
  expect(data).not.toHaveProperty('error');
}

describe('an image above a node that its file name alone does not open', () => {
  it('is told of by queries as QEMU does', async () => {
    await sayToBoth(makeImages, async (talk) => {
      const filter = { driver: 'copy-before-write', 'node-name': 'cbw', file: 'top', target: 'y' };
      await talk.qmp.execute('blockdev-add', filter);
      return names(talk);
    });
  });

  it.each(['top', 'y', 'w', 'inside'])(
    'reads the same when it is opened again: a snapshot of %s',
    async (node) => {
      const content = await sayToBoth(makeImages, async (talk) => {
        // In QEMU an overlay that nobody uses is gone at once; the image that it made stays.
        await talk.qmp.execute('blockdev-snapshot-sync', {
          ...{ 'node-name': node, 'snapshot-file': join(talk.dir, 'new') },
          'snapshot-node-name': 'new',
        });
        await end(talk);
        return seen(talk, 'new');
      });
      const bytes = Buffer.from(content, 'base64');
      const expected = { top: [1, 2], y: [0, 0], w: [9, 9], inside: [1, 1] }[node];
      expect([bytes[0], bytes[300 * 1024]]).toEqual(expected);
    },
  );

  it('reads the same when it is opened again: two snapshots in one transaction', async () => {
    const content = await sayToBoth(makeImages, async (talk) => {
      const above = (node: string, overlay: string): object => ({
        type: 'blockdev-snapshot-sync',
        data: {
          ...{ 'node-name': node, 'snapshot-file': join(talk.dir, overlay) },
          'snapshot-node-name': overlay,
        },
      });
      const actions = [above('top', 'new'), above('new', 'newer')];
      await talk.qmp.execute('transaction', { actions });
      await end(talk);
      return seen(talk, 'newer');
    });
    const bytes = Buffer.from(content, 'base64');
    expect([0, 300, 710, 900].map((at) => bytes[at * 1024])).toEqual([1, 2, 4, 5]);
  });

  it.each([
    ['a stream above it', 'block-stream', { device: 'top', 'base-node': 'x' }],
    ['a commit into it', 'block-commit', { device: 'top', 'top-node': 'm', 'base-node': 'x' }],
  ])('reads the same when it is opened again: %s', async (_, command, args) => {
    const content = await sayToBoth(makeImages, async (talk) => {
      await done(talk, command, args);
      await end(talk);
      return seen(talk, 'top');
    });
    const bytes = Buffer.from(content, 'base64');
    expect([0, 300, 710, 900].map((at) => bytes[at * 1024])).toEqual([1, 2, 4, 5]);
  });
});

describe('backing-mask-protocol', () => {
  it.each([
    ['block-stream', { 'base-node': 'plain' }],
    ['block-commit', { 'top-node': 'm', 'base-node': 'plain' }],
  ])(
    'has %s note raw, not the protocol, as the format of a base that has none',
    async (...said) => {
      const [command, args] = said;
      const formats: unknown[] = [];
      for (const mask of [false, true]) {
        const scope = testScope();
        const dir = await scope.tempDir();
        const path = (name: string): string => join(dir, name);
        await runPeer('qemu-img', ['create', '-q', '-f', 'raw', path('plain'), String(MIB)]);
        await createImage(path('m'), MIB);
        await createImage(path('top'), MIB);
        await qemuIo(path('m'), ['write -P 4 704k 64k']);
        const file = (name: string): object => ({ driver: 'file', filename: path(name) });
        const top = { driver: 'qcow2', 'node-name': 'top', file: file('top'), backing: 'm' };
        const m = { driver: 'qcow2', 'node-name': 'm', file: file('m'), backing: 'plain' };
        const nodes = [{ ...file('plain'), 'node-name': 'plain' }, m, top];
        const daemon = await startDaemon(
          scope,
          nodes.flatMap((node) => ['--blockdev', JSON.stringify(node)]),
        );
        const qmp = await daemon.qmp(scope);
        const asked = {
          device: 'top',
          ...args,
          ...(mask ? { 'backing-mask-protocol': true } : {}),
        };
        await done({ qmp, dir }, command, asked);
        await end({ qmp });
        const info = await runPeerJson<Record<string, unknown>>('qemu-img', [
          ...['info', '--output=json', path('top')],
        ]);
        formats.push(info['backing-filename-format']);
        const content = await qemuContent(path('top'), path('scratch'));
        expect([content[0], content[710 * 1024]]).toEqual([0, 4]);
        expect(info['full-backing-filename']).toBe(path('plain'));
      }
      expect(formats).toEqual(['file', 'raw']);
    },
  );
});

describe('speeds beyond 2^53', () => {
  it.each([
    ['BLOCK_JOB_COMPLETED', 'block-stream', { 'base-node': 'x' }],
    ['BLOCK_JOB_COMPLETED', 'block-commit', { 'top-node': 'm', 'base-node': 'x' }],
    ['BLOCK_JOB_READY', 'block-commit', { 'base-node': 'm' }],
  ])('are taken, and told by %s of %s', async (event, command, args) => {
    await sayToBoth(makeImages, async ({ qmp }) => {
      const all = { 'job-id': 'j', device: 'top', ...args, speed: 'SPEED' };
      const said = JSON.stringify({ execute: command, arguments: all });
      qmp.send(said.replace('"SPEED"', '9223372036853727232'));
      const { error } = await qmp.nextReply(command);
      expect(error).toBeUndefined();
      const { data } = await qmp.event(event);
      return data?.speed;
    });
  });
});
