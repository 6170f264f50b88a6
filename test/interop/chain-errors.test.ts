// SPDX-License-Identifier: MIT
/** What a commit or stream does about requests that fail: the same events as QEMU's, and the same end. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sayToBoth, type Talk } from '../support/dialogue.js';
import { createImage, expectEqual, KIB, qemuContent, qemuIo } from '../support/qcow2.js';
import type { Scope } from '../support/temp.js';

const SIZE = 1024 * KIB;
/** Where qemu-img's images have their first cluster of data: behind five of metadata. Sectors. */
const DATA_SECTOR = (5 * 64 * KIB) / 512;

interface Fault {
  /** The image below which requests fail. */
  readonly image: string;
  readonly rule: object;
}

/** base <- mid <- top. `mid` has data in clusters that `base` has not. */
const images =
  (fault: Fault) =>
  async (scope: Scope): Promise<{ dir: string; args: string[] }> => {
    const dir = await scope.tempDir();
    const args: string[] = [];
    let below: string | undefined;
    for (const name of ['base', 'mid', 'top']) {
      const backing = below === undefined ? '' : `backing_file=${below},backing_fmt=qcow2`;
      await createImage(join(dir, name), SIZE, backing);
      if (name !== 'top') await qemuIo(join(dir, name), [`write -P ${name.length} 0 256k`]);
      const image = { driver: 'file', filename: join(dir, name) };
      const bad = { driver: 'blkdebug', image, 'inject-error': [fault.rule] };
      const file = name === fault.image ? bad : image;
      const readOnly = name === 'top' ? {} : { 'read-only': true };
      const node = { driver: 'qcow2', 'node-name': name, file, backing: below ?? null };
      args.push('--blockdev', JSON.stringify({ ...node, ...readOnly }));
      below = name;
    }
    return { dir, args };
  };

async function life({ qmp, dir }: Talk, command: string, args: object): Promise<unknown> {
  await qmp.execute(command, { 'job-id': 'j', ...args });
  const error = await qmp.event('BLOCK_JOB_ERROR');
  if (error.data?.action === 'stop') {
    await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'paused');
    const [job] = await qmp.execute<{ 'io-status': string; status: string }[]>('query-block-jobs');
    expect(job).toMatchObject({ status: 'paused' });
    expect(job?.['io-status']).not.toBe('ok');
    await qmp.execute('block-job-resume', { device: 'j' });
  }
  const end = await qmp.event('BLOCK_JOB_COMPLETED');
  await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'null');
  const { device, operation, action } = error.data ?? {};
  const errors = qmp.events.filter(({ event }) => event === 'BLOCK_JOB_ERROR').length;
  await qmp.execute('quit');
  await qmp.closedByPeer();
  const content = await qemuContent(join(dir, 'top'), join(dir, 'out'));
  const expected = Buffer.alloc(SIZE);
  expected.fill(3, 0, 256 * KIB);
  expectEqual(content, expected);
  return { device, operation, action, once: errors === 1, failed: end.data?.error !== undefined };
}

/** The base's own name says how requests fail below it. */
const COMMIT = { device: 'top', 'top-node': 'mid', 'backing-file': 'base' };
const POLICIES = ['report', 'ignore', 'stop', 'enospc'] as const;
const rule = (iotype: string, errno: number, sector: number) => ({
  ...{ event: 'none', iotype, errno, sector, once: true },
});

describe('a request that fails once', () => {
  it.each(POLICIES)('of a commit that reads, with on-error %s', async (policy) => {
    const make = images({ image: 'mid', rule: rule('read', 5, DATA_SECTOR) });
    const args = { ...COMMIT, 'on-error': policy };
    const told = await sayToBoth(make, (talk) => life(talk, 'block-commit', args));
    const action = policy === 'enospc' ? 'report' : policy;
    expect(told).toMatchObject({ operation: 'read', action, once: true });
  });

  it.each(POLICIES)('of a commit that writes, with on-error %s', async (policy) => {
    const make = images({ image: 'base', rule: rule('write', 28, DATA_SECTOR) });
    const args = { ...COMMIT, 'on-error': policy };
    const told = await sayToBoth(make, (talk) => life(talk, 'block-commit', args));
    const action = policy === 'enospc' ? 'stop' : policy;
    expect(told).toMatchObject({ operation: 'write', action, once: true });
  });

  it.each(['report', 'stop', 'enospc'])(
    'of a stream that finds no room, with on-error %s',
    async (policy) => {
      const make = images({ image: 'top', rule: rule('write', 28, DATA_SECTOR) });
      const args = { device: 'top', 'on-error': policy };
      const told = await sayToBoth(make, (talk) => life(talk, 'block-stream', args));
      const action = policy === 'enospc' ? 'stop' : policy;
      expect(told).toMatchObject({ operation: 'read', action, once: true });
    },
  );
});

describe('requests that fail together', () => {
  it.each(['report', 'stop'])('are told of once, with on-error %s', async (policy) => {
    const make = async (scope: Scope): Promise<{ dir: string; args: string[] }> => {
      const always = { event: 'none', iotype: 'write', errno: 28 };
      const made = await images({ image: 'top', rule: always })(scope);
      await qemuIo(join(made.dir, 'base'), [`write -P 4 0 ${SIZE}`]);
      await qemuIo(join(made.dir, 'mid'), ['discard 0 256k']);
      return made;
    };
    const told = await sayToBoth(make, async ({ qmp }) => {
      await qmp.execute('block-stream', { 'job-id': 'j', device: 'top', 'on-error': policy });
      const gone = policy === 'report' ? 'null' : 'paused';
      await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === gone);
      const { length } = qmp.events.filter(({ event }) => event === 'BLOCK_JOB_ERROR');
      return length;
    });
    expect(told).toBe(1);
  });
});
