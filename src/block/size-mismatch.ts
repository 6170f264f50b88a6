// SPDX-License-Identifier: MIT
/** The one refusal of a copy between nodes that are not equally long. */
import { BlockError } from '../base/errors.js';

interface Sized {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
}

/** QEMU's text, which tools match, and what it leaves out. */
export function sizeMismatch(source: Sized, target: Sized): BlockError {
  return new BlockError(
    'DF_INVALID',
    `Source and target image have different sizes: node '${source.name}' has ${source.size} bytes, ` +
      `node '${target.name}' ${target.size}`,
  );
}
