// SPDX-License-Identifier: MIT
/** What snapshots inside images are refused for, and what they forbid: as qemu-storage-daemon has it. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { makeImage } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { createImage, MIB, qemuIo } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

const SIZE = 4 * MIB;

/** Images of all kinds, each open under its name. */
async function images(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const path = (name: string): string => join(dir, name);
  const raw = `data_file=${path('data')}`;
  const made = { disk: '', old: 'compat=0.10', single: 'refcount_bits=1', split: raw, target: '' };
  for (const [name, options] of Object.entries(made)) {
    await createImage(path(name), SIZE, options);
  }
  await qemuIo(path('single'), ['write 0 1M']);
  for (const name of ['readonly', 'below']) {
    await createImage(path(name), SIZE);
    await runPeer('qemu-img', ['snapshot', '-c', 'there', path(name)]);
  }
  await makeImage(path('raw'), { size: SIZE });
  const qcow2 = (name: string, more: object = {}): string[] => [
    '--blockdev',
    JSON.stringify({
      ...{ driver: 'qcow2', 'node-name': name, ...more },
      file: { driver: 'file', 'node-name': `${name}-file`, filename: path(name) },
    }),
  ];
  const split = { 'data-file': { driver: 'file', filename: path('data') } };
  const raws = { driver: 'raw', file: { driver: 'file', filename: path('raw') } };
  const args = [
    ...['disk', 'old', 'single', 'target', 'below'].flatMap((name) => qcow2(name)),
    ...[...qcow2('split', split), ...qcow2('readonly', { 'read-only': true })],
    ...['--blockdev', JSON.stringify({ ...raws, 'node-name': 'raw' })],
    ...['--blockdev', 'driver=null-co,node-name=null'],
    ...['--blockdev', 'driver=copy-on-read,node-name=filter,file=below'],
  ];
  return { dir, args };
}

/** @returns the error, or what was returned without what a clock says */
async function say({ qmp }: Talk, command: string, args: object): Promise<unknown> {
  const { error, return: returned } = await qmp.reply(command, args);
  if (error !== undefined) return error;
  const told = Object.entries(returned as object).filter(([key]) => !/^(date|vm-clock)-/.test(key));
  return Object.fromEntries(told);
}

const take = (talk: Talk, device: string, name = 's'): Promise<unknown> =>
  say(talk, 'blockdev-snapshot-internal-sync', { device, name });

const remove = (talk: Talk, device: string, wanted: object): Promise<unknown> =>
  say(talk, 'blockdev-snapshot-delete-internal-sync', { device, ...wanted });

/** Without what our errors say more, after a colon. */
function brief(said: unknown): unknown {
  const { class: errorClass, desc = '' } = said as { class?: string; desc?: string };
  return { class: errorClass, desc: desc.split(': ')[0] };
}

it('are refused as by QEMU where they can not be', async () => {
  await sayToBoth(images, async (talk) => [
    await take(talk, 'disk', ''),
    await take(talk, 'disk-file'),
    await take(talk, 'raw'),
    await take(talk, 'null'),
    await take(talk, 'readonly'),
    await take(talk, 'nobody'),
    await take(talk, ''),
    await take(talk, 'below'),
    await remove(talk, 'below', { name: 'there' }),
    await remove(talk, 'raw', { name: 's' }),
    await remove(talk, 'raw', {}),
    await remove(talk, 'disk', { id: '' }),
    await remove(talk, 'nobody', { name: 's' }),
    await say(talk, 'blockdev-snapshot-internal-sync', { device: 'disk' }),
    await say(talk, 'blockdev-snapshot-internal-sync', { device: 'disk', name: 's', id: '1' }),
    brief(await take(talk, 'single')),
  ]);
});

it('are kept by the image below a filter', async () => {
  const said = await sayToBoth(images, async (talk) => [
    await take(talk, 'filter', 'there'),
    await take(talk, 'filter', 'more'),
    await remove(talk, 'filter', { id: '1', name: 'there' }),
  ]);
  expect(said.slice(1)).toEqual([{}, { id: '1', name: 'there', 'vm-state-size': 0, icount: 0 }]);
});

it('keep an image of version 2 from being resized, and no other', async () => {
  const said = await sayToBoth(images, async (talk) => {
    const resize = (name: string): Promise<unknown> =>
      say(talk, 'block_resize', { 'node-name': name, size: 2 * SIZE });
    return [
      [await take(talk, 'old'), await resize('old')],
      [await remove(talk, 'old', { name: 's' }), await resize('old')],
      [await take(talk, 'disk'), await resize('disk'), await take(talk, 'disk', 'larger')],
      [await remove(talk, 'disk', { name: 's' }), await remove(talk, 'disk', { id: '2' })],
    ];
  });
  expect(said[0]?.[1]).toMatchObject({ desc: "Can't resize a v2 image which has snapshots" });
  expect(said[2]?.slice(1)).toEqual([{}, {}]);
});

it('are not taken or deleted while a job has the node', async () => {
  const need = { class: 'GenericError', desc: 'Need a root block node' };
  const said = await sayToBoth(images, async (talk) => {
    const before = await take(talk, 'disk', 'before');
    const job = { 'job-id': 'job', device: 'disk', target: 'target', sync: 'full' };
    await talk.qmp.execute('blockdev-mirror', job);
    const during = [
      await take(talk, 'disk'),
      await take(talk, 'target'),
      await remove(talk, 'disk', { name: 'before' }),
    ];
    await talk.qmp.execute('job-cancel', { id: 'job' });
    await talk.qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'null');
    return { before, during, after: await take(talk, 'disk', 'after') };
  });
  expect(said).toEqual({ before: {}, during: [need, need, need], after: {} });
});

it('are taken of an image with persistent bitmaps, which go on', async () => {
  const said = await sayToBoth(images, async (talk) => {
    const bitmap = { node: 'disk', name: 'b', persistent: true };
    await talk.qmp.execute('block-dirty-bitmap-add', bitmap);
    const taken = await take(talk, 'disk');
    const nodes = await talk.qmp.execute<Record<string, unknown>[]>('query-named-block-nodes');
    const disk = nodes.find((node) => node['node-name'] === 'disk');
    return { taken, bitmaps: disk?.['dirty-bitmaps'] };
  });
  expect(said).toMatchObject({ taken: {}, bitmaps: [{ name: 'b', recording: true, count: 0 }] });
});

it('are refused, with a reason, for an image whose data is in another file', async () => {
  const said: unknown[] = [];
  await sayToBoth(images, async (talk) => {
    said.push(await take(talk, 'split'));
  });
  // QEMU: "Failed to get a snapshot list: Operation not supported".
  expect(said[0]).toEqual({
    class: 'GenericError',
    desc:
      "Failed to create snapshot 's' on device 'split': " +
      'An image with an external data file can not have internal snapshots',
  });
  expect(said[1]).toMatchObject({ class: 'GenericError' });
});
