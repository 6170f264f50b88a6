// SPDX-License-Identifier: MIT
/** Jobs on parts of one chain that do or do not overlap: what runs side by side with QEMU does so here. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { createImage, KIB, qemuIo } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

const SIZE = 2048 * KIB;
/** The chain from its base to the active layer. */
const LAYERS = ['a', 'b', 'c', 'd', 'e'] as const;

/** The chain with data in each layer, and images by themselves: targets t and u, an overlay o. */
async function makeImages(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  const args: string[] = [];
  for (const [at, name] of [...LAYERS, 't', 'u', 'o'].entries()) {
    const below = at < LAYERS.length ? LAYERS[at - 1] : undefined;
    const backing = below === undefined ? '' : `backing_file=${below},backing_fmt=qcow2`;
    await createImage(join(dir, name), SIZE, backing);
    if (at < LAYERS.length) {
      await qemuIo(join(dir, name), [`write -P ${at + 1} ${at * 256}k 512k`]);
    }
    const file = { driver: 'file', filename: join(dir, name) };
    const more = below === undefined ? { backing: null } : { backing: below };
    const isBelow = at < LAYERS.length - 1 ? { 'read-only': true } : {};
    const node = { driver: 'qcow2', 'node-name': name, file, ...isBelow, ...more };
    args.push('--blockdev', JSON.stringify(node));
  }
  return { dir, args };
}

type Command = readonly [command: string, args: object];
const stream = (device: string, more: object = {}): Command => [
  'block-stream',
  { device, ...more },
];
const commit = (top: string, base: string): Command => [
  'block-commit',
  { device: 'e', 'top-node': top, 'base-node': base },
];
const copy = (kind: 'mirror' | 'backup', device: string, target: string): Command => [
  `blockdev-${kind}`,
  { device, target, sync: 'full' },
];

/** One of these is at work … */
const FIRST: Record<string, Command> = {
  'stream e to d': stream('e', { 'base-node': 'c' }),
  'stream c to b': stream('c', { 'base-node': 'a' }),
  'stream e to a': stream('e'),
  'commit d to b': commit('d', 'b'),
  'commit b to a': commit('b', 'a'),
  'active commit to d': commit('e', 'd'),
  'active commit to a': commit('e', 'a'),
  'mirror e': copy('mirror', 'e', 't'),
};

/** … when one of these is asked for. */
const SECOND: Record<string, Command> = {
  'stream e': stream('e'),
  'stream e to d': stream('e', { 'base-node': 'c' }),
  'stream d to c': stream('d', { bottom: 'c' }),
  'stream c to b': stream('c', { 'base-node': 'a' }),
  'stream b': stream('b'),
  'commit d to c': commit('d', 'c'),
  'commit c to a': commit('c', 'a'),
  'commit b to a': commit('b', 'a'),
  'active commit to d': commit('e', 'd'),
  'active commit to a': commit('e', 'a'),
  'mirror e': copy('mirror', 'e', 'u'),
  'backup e': copy('backup', 'e', 'u'),
  'backup c': copy('backup', 'c', 'u'),
  'backup a': copy('backup', 'a', 'u'),
};

/** Backups that have copied all and wait for `job-finalize`: what they hold they hold still. */
const BACKUPS: Record<string, Command> = {
  'backup e': copy('backup', 'e', 't'),
  'backup c': copy('backup', 'c', 't'),
  'backup a': copy('backup', 'a', 't'),
};

/** QEMU mirrors only what nothing else lies above; here the filter is between. */
const MIRRORS_ALLOWED = ['mirror e', 'mirror c'];

/** To the size that it has: nothing changes, but all that a change needs is asked for. */
const resize = (node: string): Command => ['block_resize', { 'node-name': node, size: SIZE }];
const remove = (node: string): Command => ['blockdev-del', { 'node-name': node }];

/** What else is asked for beside them. What is deleted is missing afterwards. */
const MORE: Record<string, Command> = {
  'mirror c': copy('mirror', 'c', 'u'),
  'backup into the same target': copy('backup', 'e', 't'),
  'mirror into the same target': copy('mirror', 'e', 't'),
  'resize e': resize('e'),
  'resize c': resize('c'),
  'resize the target': resize('t'),
  'delete c': remove('c'),
  'delete the target': remove('t'),
  snapshot: ['blockdev-snapshot', { node: 'e', overlay: 'o' }],
  'delete e': remove('e'),
};

const SNAPSHOT: Command = ['blockdev-snapshot', { node: 'e', overlay: 'o' }];

/** QEMU refuses a backup of the node that a job was started on; with our filters it is as sound as any. */
const ALSO_ALLOWED: Record<string, string> = {
  'stream e to d': 'backup e',
  'stream c to b': 'backup c',
  'stream e to a': 'backup e',
  'commit d to b': 'backup e',
  'commit b to a': 'backup e',
  'mirror e': 'backup e',
};
/** The stream would take out the image that is to note another backing file when the commit ends. */
const ALSO_REFUSED: Record<string, string> = { 'commit b to a': 'stream d to c' };

const isJob = (command: string): boolean =>
  !['blockdev-snapshot', 'blockdev-del', 'block_resize'].includes(command);

/** "allowed", or why not. */
async function ask({ qmp }: Talk, [command, args]: Command, id: string): Promise<string> {
  const job = isJob(command) ? { 'job-id': id, speed: 1, 'auto-finalize': false } : {};
  const { error } = await qmp.reply(command, { ...args, ...job });
  return error === undefined ? 'allowed' : error.desc;
}

async function end({ qmp }: Talk, id: string): Promise<void> {
  const gone = qmp.event('JOB_STATUS_CHANGE', (data) => data.id === id && data.status === 'null');
  await qmp.execute('job-cancel', { id });
  await gone;
}

async function answers(talk: Talk, first: Command): Promise<Record<string, string>> {
  expect(await ask(talk, first, 'first')).toBe('allowed');
  const told: Record<string, string> = {};
  for (const [name, command] of Object.entries(SECOND)) {
    told[name] = await ask(talk, command, 'second');
    if (told[name] === 'allowed') await end(talk, 'second');
  }
  told.snapshot = await ask(talk, SNAPSHOT, '');
  await end(talk, 'first');
  return told;
}

async function answersBesideBackup(
  talk: Talk,
  [command, args]: Command,
): Promise<Record<string, string>> {
  const { qmp } = talk;
  const isPending = qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'pending');
  await qmp.execute(command, { ...args, 'job-id': 'first', 'auto-finalize': false });
  await isPending;
  const told: Record<string, string> = {};
  for (const [name, second] of Object.entries({ ...SECOND, ...MORE })) {
    told[name] = await ask(talk, second, 'second');
    if (told[name] === 'allowed' && isJob(second[0])) await end(talk, 'second');
  }
  await qmp.execute('job-finalize', { id: 'first' });
  await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'null');
  return told;
}

/** Texts differ: QEMU often says only that a job's filter is above the node. */
function verdicts(told: Record<string, string>): Record<string, string> {
  const verdict = (text: string): string => (text === 'allowed' ? text : 'refused');
  return Object.fromEntries(Object.entries(told).map(([name, text]) => [name, verdict(text)]));
}

describe('beside another job', () => {
  it.each(Object.entries(FIRST))(
    '%s: the same is allowed and refused',
    {
      timeout: 120_000,
    },
    async (name, first) => {
      const told: Record<string, string>[] = [];
      await sayToBoth(makeImages, async (talk) => {
        const all = await answers(talk, first);
        told.push(all);
        const [more, less] = [ALSO_ALLOWED[name], ALSO_REFUSED[name]];
        if (told.length === 1) {
          if (more !== undefined) expect(all[more]).toBe('allowed');
          if (less !== undefined) expect(all[less]).not.toBe('allowed');
        }
        const { [more ?? '']: _more, [less ?? '']: _less, ...same } = verdicts(all);
        return same;
      });
      const reasons = Object.values(told[0] ?? {}).filter((text) => text !== 'allowed');
      for (const reason of reasons) expect(reason).toMatch(/block job|Cannot change '.*' link/);
    },
  );
});

describe('beside a backup', () => {
  it.each(Object.entries(BACKUPS))(
    '%s: the same is allowed and refused, but for mirrors below others',
    { timeout: 120_000 },
    async (_name, first) => {
      let isOurs = true;
      await sayToBoth(makeImages, async (talk) => {
        const told = await answersBesideBackup(talk, first);
        const mirrors = MIRRORS_ALLOWED.map((name) => told[name]);
        if (isOurs) expect(new Set(mirrors)).toEqual(new Set(['allowed']));
        else expect(mirrors).toContain('Need a root block node');
        isOurs = false;
        for (const name of MIRRORS_ALLOWED) delete told[name];
        return verdicts(told);
      });
    },
  );
});
