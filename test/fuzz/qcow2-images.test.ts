// SPDX-License-Identifier: MIT
/**
 * Images of every feature whose metadata was changed at random. They open or are refused, requests succeed or
 * fail with a reason, and nothing hangs or grows without bound. Who is refused, or only reads, changes no byte.
 * The corrupt mark and its event come together. What QEMU finds sound reads as QEMU reads it, and is sound
 * after our writes. QCOW2_MUTANTS sets how many of each kind, QCOW2_MUTANT_SEED the first seed.
 */
import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { QCOW2_INCOMPAT_CORRUPT } from '../../protocol/qcow2/header.js';
import { BlockError } from '../../src/base/errors.js';
import type { ImageCorruption } from '../../src/block/block-driver.js';
import type { BlockNode } from '../../src/block/node.js';
import { contentOf, expectEqual, KIB, MIB, openImage } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import {
  corruptions,
  eachMutant,
  KINDS,
  MUTANT_SIZE,
  type Mutant,
  readStart,
} from '../support/qcow2-mutants.js';
import { READER, RESIZER, type UsedNode } from '../unit/block/driver/test-graph.js';

const MUTANTS = Number(process.env.QCOW2_MUTANTS ?? 100);
const SEED = Number(process.env.QCOW2_MUTANT_SEED ?? 1);
/** Memory that one bad image may cost, bytes: caches and the largest tables that are allowed. */
const MEMORY_MAX = 256 * MIB;
/** Far more than any image of this size takes. */
const TIME_MAX_MS = 60_000;

/** Fails for any reason but one that the user is told. @returns false: it failed with one */
async function tolerated(work: () => unknown): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    expect(error.message).not.toBe('');
    return false;
  }
}

async function readAll(node: BlockNode): Promise<void> {
  const size = Math.min(node.size, MUTANT_SIZE);
  for (let at = 0; at + 64 * KIB <= size; at += 64 * KIB) {
    await tolerated(() => node.read(at, Buffer.alloc(64 * KIB)));
  }
  for (let at = 0; at < size; ) {
    let length = size - at;
    await tolerated(async () => {
      length = (await node.blockStatus(at, length)).length;
      expect(length).toBeGreaterThan(0);
    });
    at += length;
  }
  await tolerated(() => node.driver.snapshots?.list());
}

async function changeAll(node: BlockNode, random: Random): Promise<void> {
  const size = Math.min(node.size, MUTANT_SIZE);
  for (let nth = 0; nth < 8 && size >= 64 * KIB; nth++) {
    const offset = random.below(size - 64 * KIB + 1);
    await tolerated(() => node.write(offset, Buffer.alloc(1 + random.below(64 * KIB), nth)));
    if (nth % 3 === 0) await tolerated(() => node.writeZeroes(offset, 60 * KIB, 2));
    if (nth % 4 === 0) await tolerated(() => node.discard(offset, 64 * KIB));
    if (nth % 5 === 0) await tolerated(() => node.flush());
  }
  const { snapshots } = node.driver;
  const kind = random.below(8);
  if (kind === 0) await tolerated(() => node.truncate(node.size + 1 * MIB));
  else if (kind === 1 && size > 128 * KIB) await tolerated(() => node.truncate(128 * KIB));
  else if (kind === 2) {
    const moment = { name: 'new', dateSeconds: 1, dateNanoseconds: 0 };
    await tolerated(() => snapshots?.create(moment));
  } else if (kind === 3) await tolerated(() => snapshots?.delete({ id: '1', name: 'first' }));
  else if (kind === 4 && node.bitmaps.size === 0) await tolerated(() => snapshots?.apply('1'));
  await tolerated(() => node.flush());
}

/** @returns undefined: the image was refused */
async function open({ path, kind, random }: Mutant, write: boolean): Promise<UsedNode | undefined> {
  const options = {
    ...(kind.backed === true ? {} : { backing: null }),
    ...(random.below(2) === 0 ? { 'overlap-check': 'all' } : {}),
    'read-only': !write,
  };
  let used: UsedNode | undefined;
  await tolerated(async () => {
    used = await openImage(path, options, write ? RESIZER : READER);
  });
  return used;
}

const marked = (bytes: Buffer): boolean =>
  (bytes.readBigUInt64BE(72) & QCOW2_INCOMPAT_CORRUPT) !== 0n && bytes.readUInt32BE(4) === 3;

/** Nothing was written. */
async function expectSame(path: string, bytes: Buffer): Promise<void> {
  const left = await readStart(path);
  expect(left.size).toBe(bytes.byteLength);
  expectEqual(left.bytes, bytes);
}

/** What has to hold whatever the change was. */
async function use(mutant: Mutant): Promise<void> {
  const { path, bytes, random } = mutant;
  const write = random.below(4) > 0;
  const used = await open(mutant, write);
  if (used === undefined) {
    await expectSame(path, bytes);
    return;
  }
  const events: ImageCorruption[] = [];
  used.graph.observer = { imageCorrupted: (_node, corruption) => events.push(corruption) };
  try {
    await readAll(used.node);
    if (write) await changeAll(used.node, random);
  } finally {
    await used.close();
  }
  const left = (await readStart(path)).bytes;
  if (!write) await expectSame(path, bytes);
  const fatal = events.some((event) => event.fatal);
  if (write && !marked(bytes) && bytes.readUInt32BE(4) === 3) {
    expect({ fatal, marked: marked(left) }).toEqual({ fatal, marked: fatal });
  }
  for (const { message } of events) expect(message).not.toBe('');
}

/** Whether QEMU finds the image sound; then it is read as QEMU reads it. */
async function judgeBefore(mutant: Mutant): Promise<boolean> {
  const { path, bytes, shell } = mutant;
  if ((await corruptions(path, shell)) !== 0) return false;
  const used = await open(mutant, false);
  if (used === undefined) return false;
  const { node, close } = used;
  try {
    if (node.size > 2 * MUTANT_SIZE) return false;
    const raw = `${path}.raw`;
    const args = ['convert', '-f', 'qcow2', '-O', 'raw', path, raw];
    const theirs = await shell.run('qemu-img', args);
    const ours: { content?: Buffer } = {};
    const readable = await tolerated(async () => {
      ours.content = await contentOf(node);
    });
    if (theirs.code === 0 && readable && ours.content !== undefined) {
      expectEqual(ours.content, await readFile(raw));
    }
  } finally {
    await close();
  }
  await expectSame(path, bytes);
  return true;
}

async function inTime<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('it hangs')), TIME_MAX_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

describe('images changed at random', () => {
  for (const [number, kind] of KINDS.entries()) {
    it(`do no harm: ${kind.name}`, { timeout: 600_000 }, async () => {
      const randomOf = (seed: number) => new Random(seed * 6151 + number * 977);
      const changes = { count: MUTANTS, firstSeed: SEED, randomOf };
      const grown = await eachMutant(kind, changes, async (mutant) => {
        const { path, shell } = mutant;
        const sound = mutant.judged && (await judgeBefore(mutant));
        await inTime(use(mutant));
        if (sound) expect(await corruptions(path, shell)).toBe(0);
      });
      expect(grown).toBeLessThan(MEMORY_MAX);
    });
  }
});
