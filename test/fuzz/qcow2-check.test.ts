// SPDX-License-Identifier: MIT
/**
 * The checker on images of every feature whose metadata was changed at random. It ends, with a result or a
 * reason; who only looks changes no byte, and who mends leaves no more wrong than there was. qemu-img finds
 * no more wrong afterwards than before, and, but for tables of snapshots, nothing that its own repair would
 * have mended. QCOW2_CHECK_MUTANTS sets how many of each kind, QCOW2_MUTANT_SEED the first seed.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.js';
import { qcow2Checker } from '../../src/block/driver/qcow2/check/check.js';
import type { CheckFix, CheckResult } from '../../src/block/image-check.js';
import { PeerShell } from '../support/peer-shell.js';
import { expectEqual, MIB } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import {
  corruptions,
  eachMutant,
  KINDS,
  type Mutant,
  makeKind,
  readStart,
} from '../support/qcow2-mutants.js';
import { testScope } from '../support/temp.js';
import { READER, RESIZER, useNode } from '../unit/block/driver/test-graph.js';

const MUTANTS = Number(process.env.QCOW2_CHECK_MUTANTS ?? 20);
const SEED = Number(process.env.QCOW2_MUTANT_SEED ?? 1);
/** Memory that one bad image may cost, bytes: maps of counts and the largest tables that are allowed. */
const MEMORY_MAX = 256 * MIB;

/** @returns undefined: it gave a reason why it could not look */
async function check(path: string, fix: CheckFix): Promise<CheckResult | undefined> {
  const options = { driver: 'file', filename: path, 'read-only': fix === 'none' };
  const { backend, close } = await useNode(options, fix === 'none' ? READER : RESIZER);
  try {
    return await qcow2Checker.check({ file: backend.root, fix, say: () => undefined });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    expect(error.message).not.toBe('');
    return undefined;
  } finally {
    await close();
  }
}

const wrong = ({ corruptions: found, checkErrors }: CheckResult): number => found + checkErrors;

/** What has to hold whatever the change was. */
async function looksAndMends(path: string, bytes: Buffer): Promise<void> {
  const before = await check(path, 'none');
  const left = await readStart(path);
  expect(left.size).toBe(bytes.byteLength);
  expectEqual(left.bytes, bytes);
  for (const fix of ['leaks', 'all'] as const) {
    if ((await check(path, fix)) === undefined || before === undefined) continue;
    const after = await check(path, 'none');
    expect(after).toBeDefined();
    if (after !== undefined) expect(wrong(after)).toBeLessThanOrEqual(wrong(before));
  }
}

/** QEMU finds no more wrong than before, and no more than after its own repair. */
async function judge({ kind, bytes, path, shell, dir }: Mutant): Promise<void> {
  const before = await corruptions(path, shell);
  await looksAndMends(path, bytes);
  const after = await corruptions(path, shell);
  if (before !== undefined) expect(after).toBeLessThanOrEqual(before);
  if (kind.snapshot === true) return;
  const other = join(dir, 'other');
  await writeFile(other, bytes);
  await shell.run('qemu-img', ['check', '-q', '-f', 'qcow2', '-r', 'all', other]);
  const theirs = await corruptions(other, shell);
  if (theirs !== undefined) expect(after).toBeLessThanOrEqual(theirs);
}

describe('the checker on images changed at random', () => {
  for (const [number, kind] of KINDS.entries()) {
    it(`ends, and makes nothing worse: ${kind.name}`, { timeout: 600_000 }, async () => {
      const randomOf = (seed: number) => new Random(seed * 7919 + number * 983);
      const changes = { count: MUTANTS, firstSeed: SEED, randomOf };
      const grown = await eachMutant(kind, changes, async (mutant) => {
        if (mutant.judged) await judge(mutant);
        else await looksAndMends(mutant.path, mutant.bytes);
      });
      expect(grown).toBeLessThan(MEMORY_MAX);
    });
  }
});

it.each(['leaks', 'all'] as const)(
  'what snapshots have is no leak where they are not to be found: repair of %s',
  async (fix) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const kind = { name: 'a snapshot', options: 'cluster_size=512', snapshot: true };
    const path = await makeKind(dir, kind, new PeerShell(scope));
    const bytes = await readFile(path);
    // Version 3 has the offset of the snapshot table there; at 0 lies the header.
    bytes.writeBigUInt64BE(0n, 64);
    await writeFile(path, bytes);
    const found = await check(path, 'none');
    expect(found?.corruptions).toBeGreaterThan(0);
    expect(await check(path, fix)).toBeUndefined();
    expectEqual(await readFile(path), bytes);
  },
);
