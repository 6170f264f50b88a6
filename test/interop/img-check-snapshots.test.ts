// SPDX-License-Identifier: MIT
/** `diskferry img check` and `qemu-img check` on images whose table of snapshots is damaged. */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  decodeSnapshotTables,
  encodeSnapshotTables,
  type SnapshotEntry,
} from '../../protocol/qcow2/snapshots.js';
import { diskferry } from '../support/diskferry.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { createImage, qemuIo } from '../support/qcow2.js';
import { Scope } from '../support/temp.js';

const COUNT_AT = 60;
const OFFSET_AT = 64;
const MIB = 1024 * 1024;
const IMAGES = ['cluster_size=64k', 'cluster_size=512', 'compat=0.10'] as const;

interface Said {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const scope = new Scope();
let dir = '';

const path = (name: string): string => join(dir, name);

/** Three snapshots, each of a disk with one MiB more than the one before. */
async function makeBase(name: string, options: string): Promise<void> {
  await createImage(path(name), 8 * MIB, options);
  for (const nth of [1, 2, 3]) {
    await qemuIo(path(name), [`write -P ${nth} ${nth}M 1M`]);
    await runPeer('qemu-img', ['snapshot', '-c', `s${nth}`, path(name)]);
  }
}

beforeAll(async () => {
  dir = await scope.tempDir();
  for (const [at, options] of IMAGES.entries()) await makeBase(`base${at}`, options);
  return () => scope.close();
});

interface Table {
  readonly entries: readonly SnapshotEntry[];
  readonly count?: number;
  readonly offset?: bigint;
  /** Changes the table's bytes. */
  readonly patch?: (bytes: Buffer) => void;
}

/** Puts another table into an image: where the old one is, or behind all else. */
function put(image: Buffer, { entries, count, offset, patch }: Table): Buffer {
  const clusterSize = 2 ** image.readUInt32BE(20);
  const table = Buffer.from(encodeSnapshotTables(entries));
  patch?.(table);
  const end = Math.ceil(image.byteLength / clusterSize) * clusterSize;
  const isLong = table.byteLength > clusterSize;
  const at = isLong ? end : Number(image.readBigUInt64BE(OFFSET_AT));
  const length = Math.ceil(table.byteLength / clusterSize) * clusterSize;
  const all = Buffer.alloc(isLong ? end + length : end);
  image.copy(all);
  all.fill(0, at, at + length);
  table.copy(all, at);
  all.writeUInt32BE(count ?? entries.length, COUNT_AT);
  all.writeBigUInt64BE(offset ?? BigInt(at), OFFSET_AT);
  return all;
}

function entriesOf(image: Buffer): SnapshotEntry[] {
  const at = Number(image.readBigUInt64BE(OFFSET_AT));
  return decodeSnapshotTables(image.subarray(at), image.readUInt32BE(COUNT_AT)).tables;
}

const withExtra = (entry: SnapshotEntry, length: number): SnapshotEntry => {
  const extra = new Uint8Array(length).fill(0xab);
  extra.set(entry.extra.subarray(0, length));
  return { ...entry, extra };
};

/** Damage that qemu-img mends, given whole entries. */
const DAMAGE: Record<string, (entries: readonly SnapshotEntry[]) => Table> = {
  'no extra data': ([first, ...rest]) => ({ entries: [withExtra(of(first), 0), ...rest] }),
  'half of the extra data': (all) => ({ entries: all.map((entry) => withExtra(entry, 8)) }),
  'extra data of version 3 as it was first': (all) => ({
    entries: all.map((entry) => withExtra(entry, 16)),
  }),
  'all the extra data that may be': ([first, ...rest]) => ({
    entries: [withExtra(of(first), 1024), ...rest],
  }),
  'too much extra data': ([first, ...rest]) => ({
    entries: [withExtra(of(first), 2000), ...rest],
  }),
  'far too much extra data, and too little': ([first, second, ...rest]) => ({
    entries: [withExtra(of(first), 100_000), withExtra(of(second), 0), ...rest],
  }),
  'an entry more than there is': (all) => ({ entries: all, count: all.length + 1 }),
};

/** Damage of which qemu-img 7.2 mends too much: it takes what it can't find for no snapshots at all. */
const REFUSED: Record<string, (entries: readonly SnapshotEntry[]) => Table> = {
  'a table behind the end of the file': (entries) => ({ entries, offset: 2n ** 30n }),
  'a table that is nowhere': (entries) => ({ entries, offset: 2n ** 63n + 65536n }),
  'a table between clusters': (entries) => ({ entries, offset: 65536n + 8n }),
  'an absurd length of the extra data': (entries) => ({
    entries,
    patch: (bytes) => bytes.writeUInt32BE(0xffff_ffff, 36),
  }),
  'a wrong length of the extra data': (entries) => ({
    entries,
    patch: (bytes) => bytes.writeUInt32BE(2072, 36),
  }),
  'an absurd count': (entries) => ({ entries, count: 0xffff_ffff }),
};

function of<T>(one: T | undefined): T {
  if (one === undefined) throw new Error('there is none');
  return one;
}

const longest = (entry: SnapshotEntry): SnapshotEntry => ({
  ...withExtra(entry, 1024),
  name: Buffer.alloc(0xffff, 'n'),
});

/** What differs is only which program speaks, and that ours says what to do. */
const said = ({ code, stdout, stderr }: Said): Said => ({
  code,
  stdout,
  stderr: stderr
    .replaceAll(/qemu-img: |diskferry: |The counts have to .*\n/g, '')
    .replaceAll('diskferry img', 'qemu-img'),
});

const check = {
  theirs: (...args: string[]) => tryPeer('qemu-img', ['check', ...args]).then(said),
  ours: (...args: string[]) => diskferry(['img', 'check', ...args]).then(said),
};

async function list(name: string): Promise<string> {
  const { stdout } = await runPeer('qemu-img', ['snapshot', '-l', path(name)]);
  return stdout;
}

describe('diskferry img check of damaged snapshot tables', () => {
  const cases = IMAGES.flatMap((options, at) =>
    Object.keys(DAMAGE).map((damage) => [options, damage, at] as const),
  );

  it.each(cases)(
    'says and does what qemu-img does: %s, %s',
    async (_options, damage, at) => {
      const base = await readFile(path(`base${at}`));
      const table = DAMAGE[damage]?.(entriesOf(base));
      const image = put(base, table ?? { entries: [] });
      for (const name of ['theirs', 'ours']) await writeFile(path(name), image);
      for (const args of [[], ['-r', 'leaks'], ['-r', 'all']]) {
        const theirs = await check.theirs(...args, path('theirs'));
        expect(await check.ours(...args, path('ours')), args.join(' ')).toEqual(theirs);
      }
      expect((await check.theirs(path('ours'))).code).toBe(0);
      expect((await check.ours(path('theirs'))).code).toBe(0);
      expect((await list('ours')) === (await list('theirs'))).toBe(true);
      const [ours, theirs] = [await readFile(path('ours')), await readFile(path('theirs'))];
      expect(entriesOf(ours)).toEqual(entriesOf(theirs));
      for (const nth of [1, 2, 3]) {
        await copyFile(path('ours'), path('applied'));
        await runPeer('qemu-img', ['snapshot', '-a', `s${nth}`, path('applied')]);
        const reads = [1, 2, 3].map((mib) => `read -P ${mib <= nth ? mib : 0} ${mib}M 1M`);
        await qemuIo(path('applied'), reads);
      }
    },
    120_000,
  );

  it.each(Object.keys(REFUSED))('mends nothing where snapshots would be lost: %s', async (name) => {
    const base = await readFile(path('base0'));
    const image = put(base, REFUSED[name]?.(entriesOf(base)) ?? { entries: [] });
    await writeFile(path('ours'), image);
    for (const fix of ['leaks', 'all']) {
      const { code, stdout, stderr } = await check.ours('-r', fix, path('ours'));
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toContain('Check failed');
      expect((await readFile(path('ours'))).equals(image), fix).toBe(true);
    }
  });

  it('takes away snapshots at the end of a table that is too long, as qemu-img does', async () => {
    const base = await readFile(path('base0'));
    const all = entriesOf(base);
    const entries = [...all, ...Array<SnapshotEntry>(1020).fill(longest(of(all[0])))];
    const image = put(base, { entries });
    for (const name of ['theirs', 'ours']) await writeFile(path(name), image);
    const plain = await check.ours(path('ours'));
    expect(plain).toEqual(await check.theirs(path('theirs')));
    expect(plain.stderr).toContain('force-remove all 13 overhanging snapshots');
    const { code, stdout } = await check.ours('-r', 'all', path('ours'));
    const theirs = await check.theirs('-r', 'all', path('theirs'));
    expect({ code, stdout }).toEqual({ code: 0, stdout: theirs.stdout });
    const left = await readFile(path('ours'));
    expect(left.readUInt32BE(COUNT_AT)).toBe(entries.length - 13);
    await runPeer('qemu-img', ['check', '-q', path('ours')]);
  }, 240_000);

  it('makes room for counts where a new table has none', async () => {
    const name = path('full');
    // A block counts 64 clusters, and each round takes one more: in some round there is none left.
    await createImage(name, MIB, 'cluster_size=512,refcount_bits=64');
    await runPeer('qemu-img', ['snapshot', '-c', 's1', name]);
    await qemuIo(name, [`write -P 7 0 ${48 * 512}`]);
    for (let mended = 0; mended < 14; mended++) {
      const before = await readFile(name);
      const [first] = entriesOf(before);
      await writeFile(name, put(before, { entries: [withExtra(of(first), 0)] }));
      const { code, stdout } = await check.ours('-r', 'all', name);
      expect({ code, stdout }).toMatchObject({
        code: 0,
        stdout: expect.stringContaining('1 corr'),
      });
      await runPeer('qemu-img', ['check', '-q', name]);
      await qemuIo(name, [`write -P 7 ${(48 + mended) * 512} 512`]);
    }
  }, 240_000);
});
