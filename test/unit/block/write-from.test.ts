// SPDX-License-Identifier: MIT
/** Writes of bytes that a file has, copied there by the system. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { DirtyBitmap } from '../../../src/block/bitmap/dirty-bitmap.js';
import { REQ_OFFLOAD } from '../../../src/block/block-driver.js';
import type { FileRange } from '../../../src/block/file-range.js';
import { expectSame, pattern, seeded } from '../../suite/block-driver.suite.js';
import { contentOf, createImage, expectSound, KIB, MIB, qemuContent } from '../../support/qcow2.js';
import { testScope } from '../../support/temp.js';
import { READER, RESIZER, type UsedNode, useNode, WRITER } from './driver/test-graph.js';

const SIZE = 4 * MIB;
const content = pattern(1, SIZE);

let folder = '';
let plain = '';
let image = '';
let source: UsedNode;
let defer: (undo: () => Promise<void>) => void;

beforeEach(async () => {
  const scope = testScope();
  defer = (undo) => scope.defer(undo);
  folder = await scope.tempDir();
  plain = join(folder, 'plain');
  image = join(folder, 'image.qcow2');
  await writeFile(plain, content);
  source = await used({ driver: 'file', filename: plain, 'read-only': true });
});

async function used(options: Record<string, unknown>, permissions = WRITER): Promise<UsedNode> {
  const reads = options['read-only'] === true;
  const made = await useNode(options, reads ? READER : permissions);
  defer(made.close);
  return made;
}

const file = (filename: string): Record<string, unknown> => ({ driver: 'file', filename });

/** Has the target take bytes of the source. @returns how many it took */
function copy(
  { backend }: UsedNode,
  {
    from,
    to,
    length,
    flags = REQ_OFFLOAD,
  }: Record<'from' | 'to' | 'length', number> & {
    readonly flags?: number;
  },
): Promise<number> {
  const write = (range: FileRange) => backend.writeFrom(to, range, flags);
  return Promise.resolve(source.backend.readRange(from, length, write));
}

describe('a write from a file', () => {
  it('puts bytes into a file, and lets it grow where the parent may resize', async () => {
    const path = join(folder, 'target');
    await writeFile(path, Buffer.alloc(64 * KIB));
    const target = await used(file(path), RESIZER);
    expect(await copy(target, { from: 3, to: 10 * KIB, length: MIB })).toBe(MIB);
    expect(target.node.size).toBe(MIB + 10 * KIB);
    expectSame((await readFile(path)).subarray(10 * KIB), content.subarray(3, MIB + 3));
  });

  it('goes into the window of raw, and not past it', async () => {
    const path = join(folder, 'target');
    await writeFile(path, Buffer.alloc(MIB, 0x5a));
    const target = await used({
      ...{ driver: 'raw', offset: 4096, size: 64 * KIB },
      file: file(path),
    });
    expect(await copy(target, { from: 0, to: 512, length: 32 * KIB })).toBe(32 * KIB);
    expect(await copy(target, { from: 0, to: 33 * KIB, length: 32 * KIB })).toBe(0);
    const expected = Buffer.alloc(MIB, 0x5a);
    content.copy(expected, 4608, 0, 32 * KIB);
    expectSame(await readFile(path), expected);
  });

  it('is left alone unless the system is asked to copy', async () => {
    const path = join(folder, 'target');
    await writeFile(path, Buffer.alloc(MIB));
    const target = await used(file(path));
    expect(await copy(target, { from: 0, to: 0, length: MIB, flags: 0 })).toBe(0);
    expectSame(await readFile(path), Buffer.alloc(MIB));
  });

  it('is left alone where zeroes are looked for, past the end, and by who may not write', async () => {
    const path = join(folder, 'target');
    await writeFile(path, Buffer.alloc(MIB));
    const detecting = await used({ ...file(path), 'detect-zeroes': 'on' });
    expect(await copy(detecting, { from: 0, to: 0, length: KIB })).toBe(0);
    expect(await copy(source, { from: 0, to: 0, length: KIB })).toBe(0);
    expect(await copy(detecting, { from: 0, to: MIB, length: KIB })).toBe(0);
  });

  it('counts as a write for bitmaps and statistics', async () => {
    const path = join(folder, 'target');
    await writeFile(path, Buffer.alloc(MIB));
    const target = await used(file(path));
    const bitmap = new DirtyBitmap({ size: MIB, granularity: 64 * KIB });
    target.node.trackers.push(bitmap);
    await copy(target, { from: 0, to: 128 * KIB, length: 64 * KIB });
    expect(bitmap.nextDirtyRun(0, MIB)).toEqual({ offset: 128 * KIB, length: 64 * KIB });
    expect(target.node.stats.write).toMatchObject({ operations: 1, bytes: 64 * KIB });
  });
});

/** With the tables in memory, and one write done. */
async function openImage(options: Record<string, unknown> = {}): Promise<UsedNode> {
  const target = await used({ driver: 'qcow2', file: file(image), ...options });
  await target.backend.write(0, content.subarray(0, KIB));
  return target;
}

describe('a write from a file into a qcow2 image', () => {
  it('fills new clusters as a whole', async () => {
    await createImage(image, SIZE);
    const target = await openImage();
    expect(await copy(target, { from: MIB, to: MIB, length: 128 * KIB })).toBe(128 * KIB);
    const at = MIB + 128 * KIB;
    expect(await copy(target, { from: at, to: at, length: 250 * KIB })).toBe(192 * KIB);
    const before = Buffer.alloc(SIZE);
    content.copy(before, 0, 0, KIB);
    content.copy(before, MIB, MIB, MIB + 320 * KIB);
    expectSame(await contentOf(target.node), before);
    await target.close();
    await expectSound(image);
    expectSame(await qemuContent(image, join(folder, 'judged')), before);
  });

  it('goes into clusters that are there, in part too', async () => {
    await createImage(image, SIZE);
    const target = await openImage();
    await target.backend.write(MIB, Buffer.alloc(MIB, 7));
    expect(await copy(target, { from: 5, to: MIB + 7 * KIB, length: 500 * KIB })).toBe(500 * KIB);
    const expected = Buffer.alloc(SIZE);
    content.copy(expected, 0, 0, KIB);
    expected.fill(7, MIB, 2 * MIB);
    content.copy(expected, MIB + 7 * KIB, 5, 5 + 500 * KIB);
    expectSame(await contentOf(target.node), expected);
  });

  it('goes into clusters of an external data file that are there', async () => {
    const data = join(folder, 'data');
    await createImage(image, SIZE, `data_file=${data}`);
    const target = await openImage({ 'data-file': file(data) });
    await target.backend.write(0, Buffer.alloc(MIB, 7));
    expect(await copy(target, { from: MIB, to: 64 * KIB, length: 64 * KIB })).toBe(64 * KIB);
    expectSame(
      (await contentOf(target.node)).subarray(64 * KIB, 128 * KIB),
      content.subarray(MIB, MIB + 64 * KIB),
    );
  });

  it('gets an image ready that nothing was written to', async () => {
    await createImage(image, SIZE);
    const target = await used({ driver: 'qcow2', file: file(image) });
    expect(await copy(target, { from: 0, to: MIB, length: MIB })).toBe(MIB);
    await target.close();
    await expectSound(image);
    const expected = Buffer.alloc(SIZE);
    content.copy(expected, MIB, 0, MIB);
    expectSame(await qemuContent(image, join(folder, 'judged')), expected);
  });

  it('leaves to a write what is unaligned, or shared with a snapshot', async () => {
    await createImage(image, SIZE);
    const target = await openImage();
    expect(await copy(target, { from: 0, to: MIB + 512, length: MIB })).toBe(0);
    expect(await copy(target, { from: 0, to: MIB, length: 63 * KIB })).toBe(0);
    await target.node.driver.snapshots?.create({ name: 's', dateSeconds: 0, dateNanoseconds: 0 });
    expect(await copy(target, { from: 0, to: 0, length: 64 * KIB })).toBe(0);
  });

  it('gives the clusters back, and changes nothing, where the file has lost its end', async () => {
    await createImage(image, SIZE);
    const target = await openImage();
    expect(await copy(target, { from: 0, to: MIB, length: 64 * KIB })).toBe(64 * KIB);
    await truncate(plain, MIB + 10 * KIB);
    expect(await copy(target, { from: MIB, to: 2 * MIB, length: 128 * KIB })).toBe(0);
    const expected = Buffer.alloc(SIZE);
    content.copy(expected, 0, 0, KIB);
    content.copy(expected, MIB, 0, 64 * KIB);
    await target.backend.flush();
    expectSame(await contentOf(target.node), expected);
    await target.close();
    await expectSound(image);
  });

  it('agrees with the model when copies and writes overlap in time', async () => {
    await createImage(image, SIZE);
    const target = await openImage();
    const random = seeded(5);
    const model = Buffer.alloc(SIZE);
    content.copy(model, 0, 0, KIB);
    for (let round = 0; round < 20; round++) {
      const places = [...Array(8).keys()].map((nth) => nth * 512 * KIB + random(7) * 64 * KIB);
      await Promise.all(
        places.map(async (to, nth) => {
          const from = random(SIZE - 64 * KIB);
          if (nth % 3 === 0) await target.backend.write(to, content.subarray(from, from + 9 * KIB));
          const length =
            nth % 3 === 0 ? 9 * KIB : await copy(target, { from, to, length: 64 * KIB });
          content.copy(model, to, from, from + length);
        }),
      );
      if (round % 5 === 0) await target.backend.flush();
    }
    expectSame(await contentOf(target.node), model);
    await target.close();
    await expectSound(image);
    expectSame(await qemuContent(image, join(folder, 'judged')), model);
  });
});
