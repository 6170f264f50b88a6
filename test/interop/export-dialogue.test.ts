// SPDX-License-Identifier: MIT
/** Exports, devices and objects that come and go: replies, refusals and events are QEMU's. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { type DialogueStep, type QmpPeer, startMonitor } from '../support/qemu-monitor.js';
import { type Scope, testScope } from '../support/temp.js';

const PEERS: readonly QmpPeer[] = ['diskferryd', 'qemu-storage-daemon'];

/** Every line that came, without time stamps, in the order in which they came. */
async function saidBy(scope: Scope, peer: QmpPeer, steps: readonly DialogueStep[]) {
  const qmp = await startMonitor(scope, peer);
  for (const step of steps) await qmp.reply(step.execute, step.arguments);
  const messages = qmp.lines.slice(2).map((line): Record<string, unknown> => JSON.parse(line));
  return messages.map(({ timestamp: _, ...message }) => message);
}

async function expectSame(steps: (dir: string) => readonly DialogueStep[]) {
  const scope = testScope();
  const said = [];
  for (const peer of PEERS) {
    const dir = await scope.tempDir();
    const messages = await saidBy(scope, peer, steps(dir));
    said.push(JSON.parse(JSON.stringify(messages).replaceAll(dir, 'DIR')));
  }
  expect(said[0]).toEqual(said[1]);
  return said[0];
}

const step = (execute: string, args?: object): DialogueStep =>
  args === undefined ? { execute } : { execute, arguments: args };
const node = (name: string) =>
  step('blockdev-add', { driver: 'null-co', size: 1 << 20, 'node-name': name });
const start = (dir: string, name = 'nbd') =>
  step('nbd-server-start', { addr: { type: 'unix', data: { path: join(dir, name) } } });
const add = (id: string, more: object = {}) =>
  step('block-export-add', { type: 'nbd', id, 'node-name': 'n', name: id, ...more });

it('exports: the newest is listed first, and an idle one is gone before the reply', async () => {
  const said = await expectSame((dir) => [
    node('n'),
    start(dir),
    start(dir, 'other'),
    ...['a', 'b'].map((id) => add(id)),
    step('nbd-server-add', { device: 'n' }),
    step('nbd-server-add', { device: 'n' }),
    step('query-block-exports'),
    step('block-export-del', { id: 'a' }),
    step('nbd-server-remove', { name: 'n' }),
    step('nbd-server-remove', { name: 'n' }),
    step('block-export-del', { id: 'b', mode: 'hard' }),
    step('blockdev-del', { 'node-name': 'n' }),
    step('query-block-exports'),
    step('nbd-server-stop'),
    step('nbd-server-stop'),
  ]);
  const ended = said.filter(({ event }: { event?: string }) => event === 'BLOCK_EXPORT_DELETED');
  expect(ended.map(({ data }: { data: unknown }) => data)).toEqual(
    ['a', 'n', 'b'].map((id) => ({ id })),
  );
});

it('exports that are refused', async () => {
  await expectSame((dir) => [
    node('n'),
    add('early'),
    start(dir),
    add('a'),
    add('a', { name: 'other' }),
    add('b', { name: 'a' }),
    add('4bad'),
    add('c', { type: 'bogus' }),
    add('c', { 'node-name': 'nowhere' }),
    add('c', { bitmaps: ['none'] }),
    add('c', { foo: 1 }),
    step('block-export-add', { type: 'nbd', 'node-name': 'n' }),
    step('block-export-del', { id: 'none' }),
    step('block-export-del', { id: 'a', mode: 'soft' }),
    step('blockdev-del', { 'node-name': 'n' }),
    step('nbd-server-start', { addr: { type: 'unix', data: { path: '/nowhere/nbd' } } }),
  ]);
});

it('character devices and objects', async () => {
  const quiet = { type: 'null', data: {} };
  const file = { type: 'file', data: { out: '/nowhere/log' } };
  const limits = { 'bps-total': 1000 };
  const group = (args: object) => step('object-add', { 'qom-type': 'throttle-group', ...args });
  await expectSame(() => [
    step('chardev-add', { id: 'x', backend: quiet }),
    step('chardev-add', { id: 'x', backend: quiet }),
    step('chardev-add', { id: 'y', backend: file }),
    step('chardev-remove', { id: 'nowhere' }),
    step('chardev-change', { id: 'nowhere', backend: quiet }),
    step('chardev-remove', { id: 'x' }),
    group({ id: 'g', limits: { ...limits, 'bps-read': 5 } }),
    group({ id: 'g', limits }),
    group({ id: 'g' }),
    group({ id: '0' }),
    group({}),
    step('object-add', { 'qom-type': 'nothing', id: 'h' }),
    step('qom-list', { path: '/objects' }),
    step('qom-list', { path: '/nowhere' }),
    step('qom-list-types', { implements: 'throttle-group' }),
    step('qom-get', { path: 'g', property: 'x-bps-total' }),
    step('qom-get', { path: 'g', property: 'nothing' }),
    step('object-del', { id: 'nowhere' }),
    step('object-del', { id: 'g' }),
  ]);
});

it('a node with users that write does not become read-only, and says so', async () => {
  const raw = (readOnly: boolean) => ({
    ...{ driver: 'raw', file: 'n', 'node-name': 'r', 'read-only': readOnly },
  });
  const said = await expectSame((dir) => [
    node('n'),
    step('blockdev-add', raw(false)),
    start(dir),
    add('e', { 'node-name': 'r', writable: true }),
    step('blockdev-reopen', { options: [raw(true)] }),
    step('block-export-del', { id: 'e', mode: 'hard' }),
    step('blockdev-reopen', { options: [raw(true)] }),
    step('blockdev-reopen', { options: [raw(false)] }),
  ]);
  expect(JSON.stringify(said)).toContain("Read-only block node 'r' cannot support");
});
