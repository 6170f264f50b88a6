// SPDX-License-Identifier: MIT
/**
 * The checker on images of every feature whose metadata was changed at random. It ends, with a result or a
 * reason; who only looks changes no byte, and who mends leaves no more wrong than there was. qemu-img finds
 * no more wrong afterwards than before, and, but for tables of snapshots, nothing that its own repair would
 * have mended. QCOW2_CHECK_MUTANTS sets how many of each kind, QCOW2_MUTANT_SEED the first seed.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.js';
import { qcow2Checker } from '../../src/block/driver/qcow2/check/check.js';
import type { CheckFix, CheckResult } from '../../src/block/image-check.js';
import { PeerShell } from '../support/peer-shell.js';
import { expectEqual, MIB } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import { corruptions, KINDS, makeKind, mutate, readStart } from '../support/qcow2-mutants.js';
import { testScope } from '../support/temp.js';
import { READER, RESIZER, useNode } from '../unit/block/driver/test-graph.js';

const MUTANTS = Number(process.env.QCOW2_CHECK_MUTANTS ?? 20);
const SEED = Number(process.env.QCOW2_MUTANT_SEED ?? 1);
/** One of so many is judged by qemu-img too. */
const JUDGED = 4;
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

describe('the checker on images changed at random', () => {
  for (const [number, kind] of KINDS.entries()) {
    it(`ends, and makes nothing worse: ${kind.name}`, { timeout: 600_000 }, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const shell = new PeerShell(scope);
      const original = join(dir, 'original');
      await mkdir(original);
      const { bytes: image } = await readStart(await makeKind(original, kind, shell));
      const [path, other] = [join(dir, 'mutant'), join(dir, 'other')];
      const memory = process.memoryUsage.rss();
      for (let nth = 0; nth < MUTANTS; nth++) {
        const random = new Random((SEED + nth) * 7919 + number * 983);
        const bytes = Buffer.from(image);
        const told = mutate(bytes, random);
        await writeFile(path, bytes);
        const judged = nth % JUDGED === 0;
        try {
          const before = judged ? await corruptions(path, shell) : undefined;
          await looksAndMends(path, bytes);
          if (!judged) continue;
          const after = await corruptions(path, shell);
          if (before !== undefined) expect(after).toBeLessThanOrEqual(before);
          if (kind.snapshot === true) continue;
          await writeFile(other, bytes);
          await shell.run('qemu-img', ['check', '-q', '-f', 'qcow2', '-r', 'all', other]);
          const theirs = await corruptions(other, shell);
          if (theirs !== undefined) expect(after).toBeLessThanOrEqual(theirs);
        } catch (cause) {
          throw new Error(`${kind.name}, seed ${SEED + nth}: ${told}`, { cause });
        }
      }
      expect(process.memoryUsage.rss() - memory).toBeLessThan(MEMORY_MAX);
    });
  }
});
