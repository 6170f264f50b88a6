// SPDX-License-Identifier: MIT
/** What a copy loop reads and writes, where both are nodes. */
import { chainStatus } from '../block/block-status.js';
import type { BlockNode } from '../block/node.js';
import type { CopySource, CopyTarget } from './copy-loop.js';

/**
 * @param generation counts changes of what is read at the source
 * @returns the two sides; nodes are asked for anew with each request
 */
export function copyBetween({
  source,
  target,
  generation,
}: {
  readonly source: () => BlockNode;
  readonly target: () => BlockNode;
  readonly generation: () => number;
}): { readonly source: CopySource; readonly target: CopyTarget } {
  return {
    source: {
      read: (offset, buffer) => source().read(offset, buffer),
      blockStatus: (offset, length) => chainStatus(source(), offset, length),
      get generation() {
        return generation();
      },
    },
    target: {
      write: (offset, buffer) => target().write(offset, buffer),
      writeZeroes: (offset, length, flags) => target().writeZeroes(offset, length, flags),
    },
  };
}
