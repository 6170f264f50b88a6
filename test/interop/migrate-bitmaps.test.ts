// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate --bitmaps`: incremental backups go on at the target. What is restored from a
 * full backup made at the source and an incremental one made at the target is compared byte for
 * byte; qemu-storage-daemon stands in for either side.
 */
import { describe, expect, it } from 'vitest';
import {
  BitmapMigration,
  bitmapsOf,
  differsAt,
  digest,
  inventory,
  missingMark,
} from '../support/bitmap-migration.js';
import { diskferry } from '../support/diskferry.js';
import { testScope } from '../support/temp.js';

const NAMES = ['daily', 'fine', 'old'];
const PAIRS = [
  ['diskferryd', 'diskferryd'],
  ['diskferryd', 'qemu-storage-daemon'],
  ['qemu-storage-daemon', 'diskferryd'],
  ['qemu-storage-daemon', 'qemu-storage-daemon'],
] as const;

/** Further words, without which a source of QEMU can't be migrated from. */
const wordsFor = (bench: BitmapMigration, source: string): string[] =>
  source === 'diskferryd' ? [] : ['--copy-mode', 'background', '--from-nbd', bench.source.uri];

describe('bitmaps carried along by a migration', () => {
  it.each(PAIRS)('of a silent disk are the same, from %s to %s', async (from, to) => {
    const scope = testScope();
    const sides = { source: { program: from }, target: { program: to } };
    const bench = await BitmapMigration.start(scope, { seed: 1, ...sides });
    const before = await bitmapsOf(bench.source);
    const digests = await Promise.all(NAMES.map((name) => digest(bench.source, name)));
    const there = await inventory(bench.target);
    const moved = await diskferry(bench.words(...wordsFor(bench, from)));
    expect(moved).toMatchObject({ code: 0 });
    expect(moved.stdout).toContain("bitmaps on node 'disk' there: ");
    expect(before.map(({ name }) => name)).toEqual(NAMES);
    expect(await bitmapsOf(bench.target)).toEqual(before);
    expect(await Promise.all(NAMES.map((name) => digest(bench.target, name)))).toEqual(digests);
    expect(await bitmapsOf(bench.source)).toEqual(before);
    expect(await inventory(bench.target)).toEqual(there);
  });

  it.each(PAIRS)('have all that was written, from %s to %s', async (from, to) => {
    const scope = testScope();
    const sides = { source: { program: from }, target: { program: to } };
    const bench = await BitmapMigration.start(scope, { seed: 2, ...sides });
    const old = await digest(bench.source, 'old');
    await bench.startWriting();
    const moved = await diskferry(bench.words(...wordsFor(bench, from)));
    expect(moved).toMatchObject({ code: 0 });
    await bench.wroteMore(200);
    await bench.stopWriting();
    expect(bench.writeError).toBeUndefined();
    expect(await digest(bench.target, 'old')).toBe(old);
    expect(differsAt(await bench.content(bench.target), bench.model)).toBeUndefined();
    expect(missingMark(await bench.marked(bench.target), bench.touched)).toBeUndefined();
    expect(differsAt(await bench.restore(bench.target), bench.model)).toBeUndefined();
  });
});
