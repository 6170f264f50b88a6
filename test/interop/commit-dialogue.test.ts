// SPDX-License-Identifier: MIT
/** Dialogues about block-commit with our daemon and with qemu-storage-daemon: the answers are the same. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { createImage, MIB, qemuIo } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

async function chain(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const node = (name: string, backing: string): string[] => [
    ...['--blockdev', `file,node-name=${name}-file,filename=${join(dir, name)},auto-read-only=on`],
    '--blockdev',
    `qcow2,node-name=${name},file=${name}-file,${backing}${name === 'c' ? '' : ',read-only=on'}`,
  ];
  await createImage(join(dir, 'a'), 2 * MIB);
  await createImage(join(dir, 'b'), 2 * MIB, 'backing_file=a,backing_fmt=qcow2');
  await createImage(join(dir, 'c'), 2 * MIB, 'backing_file=b,backing_fmt=qcow2');
  await createImage(join(dir, 'x'), 2 * MIB);
  await qemuIo(join(dir, 'b'), ['write -P 7 64k 640k']);
  const args = [
    ...node('a', 'backing='),
    ...node('b', 'backing=a'),
    ...node('c', 'backing=b'),
    ...node('x', 'backing='),
  ].map((arg) => arg.replace(',backing=,', ','));
  return { dir, args };
}

/** Says the same to both; what the dialogue returns has to be equal. */
function both(dialogue: (talk: Talk) => Promise<unknown>): Promise<unknown> {
  return sayToBoth(chain, dialogue);
}

describe('block-commit', () => {
  it.each<[string, object, string]>([
    ['no such device', { device: 'nope' }, "Device 'nope' not found"],
    ['a device in the middle', { device: 'b' }, 'Need a root block node'],
    ['no backing image', { device: 'x' }, 'cannot commit an image into itself'],
    ['top by both names', { top: 'b', 'top-node': 'b' }, 'mutually exclusive'],
    ['base by both names', { base: 'a', 'base-node': 'a' }, 'mutually exclusive'],
    ['no such top node', { 'top-node': 'nope' }, 'Cannot find device'],
    ['no such base node', { 'base-node': 'nope' }, 'Cannot find device'],
    ['a top elsewhere', { 'top-node': 'x' }, 'not in this backing file chain'],
    ['a base elsewhere', { 'base-node': 'x' }, 'not in this backing file chain'],
    ['a base above the top', { 'top-node': 'a', 'base-node': 'b' }, 'not in this backing'],
    ['no such top file', { top: '/nope' }, 'Top image file /nope not found'],
    ['no such base file', { base: '/nope' }, "Can't find '/nope' in the backing chain"],
    ['base and top the same', { 'top-node': 'b', 'base-node': 'b' }, 'into itself'],
    ['a backing file for the active layer', { 'backing-file': 'z' }, "'top' is the active layer"],
    ['a bad speed', { speed: -1 }, 'non-negative'],
  ])('refuses %s', async (_, args, words) => {
    const reply = await both(async ({ qmp }) => {
      const { error } = await qmp.reply('block-commit', { 'job-id': 'j', device: 'c', ...args });
      return error;
    });
    expect(JSON.stringify(reply)).toContain(words);
  });

  it.each<[string, object]>([
    ['below the active layer', { 'top-node': 'b' }],
    ['of the active layer', {}],
  ])('tells its life %s, and keeps others out', async (_, args) => {
    await both(async ({ qmp }) => {
      const commit = {
        'job-id': 'j',
        device: 'c',
        ...args,
        speed: 1,
        'filter-node-name': 'filter',
      };
      await qmp.execute('block-commit', { ...commit, 'auto-dismiss': false });
      const refused: unknown[] = [];
      for (const more of [{}, { 'top-node': 'b' }]) {
        refused.push(
          (await qmp.reply('block-commit', { 'job-id': 'k', device: 'c', ...more })).error?.class,
        );
      }
      refused.push((await qmp.reply('blockdev-del', { 'node-name': 'b' })).error?.class);
      const jobs = await qmp.execute<Record<string, unknown>[]>('query-block-jobs');
      const described = jobs.map(({ type, device, speed, ready }) => ({
        type,
        device,
        speed,
        ready,
      }));
      await qmp.execute('block-job-set-speed', { device: 'j', speed: 0 });
      const is = (wanted: string) => (data: Record<string, unknown>) => data.status === wanted;
      if (!('top-node' in args)) {
        await qmp.event('JOB_STATUS_CHANGE', is('ready'));
        await qmp.execute('block-job-complete', { device: 'j' });
      }
      await qmp.event('JOB_STATUS_CHANGE', is('concluded'));
      await qmp.execute('job-dismiss', { id: 'j' });
      const nodes = await qmp.execute<Record<string, unknown>[]>('query-named-block-nodes');
      const names = nodes.map((node) => [node['node-name'], node.drv, node.ro]).sort();
      const story = qmp.events.map(({ event, data }) => [event, data?.status, data?.type]);
      return { refused, described, names, story };
    });
  });
});
