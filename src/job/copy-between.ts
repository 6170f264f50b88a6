// SPDX-License-Identifier: MIT
/** What a copy loop reads and writes, where both are nodes. */
import type { RequestFlags } from '../block/block-driver.js';
import { chainStatus } from '../block/block-status.js';
import type { BlockNode } from '../block/node.js';
import type { CopySource, CopyTarget } from './copy-loop.js';

/**
 * @param lend REQ_LEND, REQ_LEND_ONCE or 0: what may be done with the source's bytes at the target
 * @param generation counts changes of what is read at the source
 * @returns the two sides; nodes are asked for anew with each request
 */
export function copyBetween({
  source,
  target,
  generation,
  lend,
}: {
  readonly source: () => BlockNode;
  readonly target: () => BlockNode;
  readonly generation: () => number;
  readonly lend: RequestFlags;
}): { readonly source: CopySource; readonly target: CopyTarget } {
  return {
    source: {
      read: (offset, buffer) => source().read(offset, buffer),
      readRange: (offset, length, use) => source().readRange(offset, length, use),
      blockStatus: (offset, length) => chainStatus(source(), offset, length),
      get generation() {
        return generation();
      },
    },
    target: {
      write: (offset, buffer) => target().write(offset, buffer),
      writeFrom: (offset, range) => target().writeFrom(offset, range, lend),
      get passLength() {
        return target().driver.passLength;
      },
      writeZeroes: (offset, length, flags) => target().writeZeroes(offset, length, flags),
    },
  };
}
