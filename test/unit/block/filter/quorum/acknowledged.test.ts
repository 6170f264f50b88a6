// SPDX-License-Identifier: MIT
/** Copies fail at random: what was acknowledged is read back, or the read fails. */
import { expect, it } from 'vitest';
import { BlockError } from '../../../../../src/base/errors.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../../src/block/permissions.js';
import { pattern, seeded } from '../../../../suite/block-driver.suite.js';
import type { MemoryDriver } from '../../../../support/memory-driver.js';
import { filterGraph, memoryOf } from '../filter-graph.js';

const SIZE = 16 * 1024;
const STEPS = 600;

interface Setup {
  readonly count: number;
  readonly threshold: number;
  readonly pattern: string;
}

const SETUPS: Setup[] = [];
for (const readPattern of ['quorum', 'fifo']) {
  for (const [count, threshold] of [
    [1, 1],
    [2, 1],
    [3, 1],
    [3, 2],
    [4, 2],
    [5, 3],
  ] as const) {
    SETUPS.push({ count, threshold, pattern: readPattern });
  }
}

async function make({ count, threshold, pattern: readPattern }: Setup) {
  const filters = filterGraph();
  const children = Array.from({ length: count }, (_, index) => ({
    ...{ driver: 'memory', 'node-name': `c${index}`, size: SIZE },
  }));
  const node = await filters.add({
    ...{ driver: 'quorum', 'node-name': 'q', children, 'vote-threshold': threshold },
    'read-pattern': readPattern,
  });
  const copies = children.map((child) => memoryOf(filters.graph.get(child['node-name'])));
  return { guest: await filters.use(node, PERM_CONSISTENT_READ | PERM_WRITE), copies };
}

/** Some copies fail what comes next; each may answer at once or later. */
function upset(copies: readonly MemoryDriver[], random: (limit: number) => number): void {
  for (const copy of copies) {
    const error = random(4) === 0 ? new BlockError('DF_IO', 'unlucky') : undefined;
    copy.fail = error === undefined ? {} : { read: error, write: error, flush: error };
    copy.delay = random(3) === 0 ? () => Promise.resolve() : undefined;
  }
}

it.each(SETUPS)('holds for $count copies, threshold $threshold, $pattern', async (setup) => {
  const { guest, copies } = await make(setup);
  const random = seeded(setup.count * 100 + setup.threshold * 10 + setup.pattern.length);
  const model = Buffer.alloc(SIZE);
  /** 1: a write failed there, so anything may be read. */
  const unknown = Buffer.alloc(SIZE);
  const seen = { ok: 0, failed: 0 };
  const attempt = async (act: () => unknown): Promise<boolean> => {
    try {
      await act();
      return true;
    } catch {
      return false;
    }
  };
  for (let step = 0; step < STEPS; step++) {
    upset(copies, random);
    const offset = random(SIZE / 256) * 256;
    const length = Math.min(256 * (1 + random(8)), SIZE - offset);
    const kind = random(20);
    if (kind < 9) {
      const data = pattern(step, length);
      const zeroes = kind === 0;
      if (zeroes) data.fill(0);
      const done = await attempt(() =>
        zeroes ? guest.writeZeroes(offset, length) : guest.write(offset, data),
      );
      data.copy(model, offset);
      unknown.fill(done ? 0 : 1, offset, offset + length);
    } else if (kind === 9) {
      await attempt(() => guest.flush());
    } else {
      const data = Buffer.alloc(length, 0xee);
      const done = await attempt(() => guest.read(offset, data));
      seen[done ? 'ok' : 'failed']++;
      const wrong = data.findIndex(
        (byte, at) => unknown[offset + at] === 0 && byte !== model[offset + at],
      );
      if (done) expect(wrong, `step ${step}`).toBe(-1);
    }
  }
  expect(seen.ok).toBeGreaterThan(STEPS / 20);
  expect(seen.failed).toBeGreaterThan(0);
});
