// SPDX-License-Identifier: MIT
/** How jobs end and what they refuse, said by our daemon and by qemu-storage-daemon in the same words. */
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { MIB } from '../support/images.js';
import type { QmpClient } from '../support/qmp-client.js';
import type { Scope } from '../support/temp.js';

async function disks(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  await writeFile(join(dir, 'source'), Buffer.alloc(2 * MIB, 7));
  for (const name of ['target', 'full']) {
    await writeFile(join(dir, name), '');
    await truncate(join(dir, name), 2 * MIB);
  }
  const file = (name: string): string[] => [
    '--blockdev',
    `file,node-name=${name},filename=${join(dir, name)}`,
  ];
  const failing = [
    ...['blkdebug,node-name=failing,image=full'],
    ...['inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=28'],
  ].join(',');
  const args = [...file('source'), ...file('target'), ...file('full'), '--blockdev', failing];
  return { dir, args };
}

const both = <T>(dialogue: (talk: Talk) => Promise<T>): Promise<T> => sayToBoth(disks, dialogue);

/** Starts a job that has nothing in flight: it waits for writes, or to be finalized. */
async function begin(qmp: QmpClient, command: string, state: 'running' | 'pending'): Promise<void> {
  const reached = (wanted: string): Promise<unknown> =>
    qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === wanted);
  await qmp.execute(command, {
    ...{ 'job-id': 'j', device: 'source', target: 'target' },
    ...{ sync: state === 'running' ? 'none' : 'full', 'auto-finalize': state === 'running' },
  });
  if (state === 'running') return;
  if (command === 'blockdev-mirror') {
    await reached('ready');
    await qmp.execute('job-complete', { id: 'j' });
  }
  await qmp.event('BLOCK_JOB_PENDING');
}

describe('a cancelled job', () => {
  it.each([
    ['blockdev-backup', 'running'],
    ['blockdev-backup', 'pending'],
    ['blockdev-mirror', 'pending'],
  ] as const)('has ended before the reply (%s, %s)', async (command, state) => {
    const told = await both(async ({ qmp }) => {
      await begin(qmp, command, state);
      const from = qmp.lines.length;
      await qmp.execute('block-job-cancel', { device: 'j', force: true });
      const lines = qmp.lines.slice(from).map((line) => JSON.parse(line));
      return lines.map(({ event, data }) => data?.status ?? event ?? 'reply');
    });
    expect(told).toEqual(['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null', 'reply']);
  });
});

describe('a job that fails', () => {
  it.each(['blockdev-backup', 'blockdev-mirror'])(
    "begins its error with the system's words (%s)",
    async (command) => {
      const errors = await both(async ({ qmp }) => {
        const args = { 'job-id': 'j', device: 'source', target: 'failing', sync: 'full' };
        await qmp.execute(command, { ...args, 'auto-dismiss': false });
        const { data } = await qmp.event('BLOCK_JOB_COMPLETED');
        await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
        const [job] = await qmp.execute<{ error: string }[]>('query-jobs');
        return [data?.error, job?.error].map((text) => String(text).split(':')[0]);
      });
      expect(errors).toEqual(['No space left on device', 'No space left on device']);
    },
  );
});

describe('refusals', () => {
  it.each(['9', 'source', 'x'.repeat(32)])('name what is wrong with the name %j', async (name) => {
    await both(async ({ qmp }) => {
      const args = { 'job-id': 'j', device: 'source', 'filter-node-name': name };
      const copy = { ...args, target: 'target', sync: 'full' };
      return [
        await qmp.reply('blockdev-backup', copy),
        await qmp.reply('blockdev-mirror', copy),
      ].map(({ error }) => error);
    });
  });

  it('tell that a job was not paused, whatever its state', async () => {
    const errors = await both(async ({ qmp }) => {
      await begin(qmp, 'blockdev-backup', 'pending');
      const verbs = ['job-pause', 'job-resume', 'job-complete', 'job-dismiss'];
      const replies: unknown[] = [];
      for (const verb of verbs) replies.push((await qmp.reply(verb, { id: 'j' })).error?.desc);
      return replies;
    });
    expect(errors[1]).toBe("Can't resume a job that was not paused");
  });
});

describe('quit', () => {
  it('forgets a job that nobody has dismissed', async () => {
    const states = await both(async ({ qmp }) => {
      await begin(qmp, 'blockdev-backup', 'pending');
      await qmp.execute('job-finalize', { id: 'j' });
      const args = { device: 'source', target: 'target', sync: 'full', 'auto-dismiss': false };
      await qmp.execute('blockdev-backup', { 'job-id': 'kept', ...args });
      const isKept = (data: Record<string, unknown>): boolean => data.id === 'kept';
      await qmp.event('JOB_STATUS_CHANGE', (data) => isKept(data) && data.status === 'concluded');
      await qmp.execute('quit');
      await qmp.event('JOB_STATUS_CHANGE', (data) => isKept(data) && data.status === 'null');
      const kept = qmp.events.filter(({ data }) => data?.id === 'kept');
      return kept.slice(-2).map(({ data }) => data?.status);
    });
    expect(states).toEqual(['concluded', 'null']);
  });
});
