// SPDX-License-Identifier: MIT
/** Requests of a node whose bytes go from file to file, or to a socket, without passing through us. */
import { isPromise, type MaybePromise } from '../base/maybe-promise.js';
import { REQ_FUA, type RequestFlags } from './block-driver.js';
import type { FileRange, RangeUse } from './file-range.js';
import type { BlockNode } from './node.js';
import { PERM_RESIZE } from './permissions.js';

/** @see BlockNode.readRange */
export function readRange(
  node: BlockNode,
  offset: number,
  length: number,
  use: RangeUse,
): MaybePromise<number> {
  const { driver, stats } = node;
  const inside = offset >= 0 && length > 0 && offset + length <= driver.size;
  if (driver.readRange === undefined || !inside || !isPlain(node, length)) return 0;
  const started = stats.start();
  const count = (taken: number): number => {
    if (taken > 0) stats.done('read', offset, taken, started);
    return taken;
  };
  const taken = driver.readRange(offset, length, use);
  return isPromise(taken) ? tracked(node, taken, count) : count(taken);
}

/** @see BlockNode.writeFrom */
export function writeFrom(
  node: BlockNode,
  offset: number,
  source: FileRange,
  flags: RequestFlags,
): MaybePromise<number> {
  const { driver, stats, options } = node;
  const { length } = source;
  const plain =
    isPlain(node, length) &&
    node.rangeLock.count === 0 &&
    options.detectZeroes === 'off' &&
    ((flags & REQ_FUA) === 0 || driver.features.fua);
  if (
    driver.writeFrom === undefined ||
    node.readOnly ||
    !plain ||
    !hasRoom(node, offset + length)
  ) {
    return 0;
  }
  const started = stats.start();
  const count = (written: number): number => {
    if (written === 0) return 0;
    node.noteWritten(offset, written, flags);
    stats.done('write', offset, written, started);
    return written;
  };
  const failed = (error: unknown): never => {
    // It may have changed some of its bytes.
    node.noteWritten(offset, length);
    stats.failed('write', length, started);
    throw error;
  };
  try {
    const written = driver.writeFrom(offset, source, flags);
    return isPromise(written) ? tracked(node, written.catch(failed), count) : count(written);
  } catch (error) {
    return failed(error);
  }
}

/** A request of this length fits the driver as it is, wherever it begins. */
function isPlain(node: BlockNode, length: number): boolean {
  const { requestAlignment, maxTransfer } = node.limits;
  return node.active && requestAlignment === 1 && (maxTransfer === 0 || length <= maxTransfer);
}

function hasRoom(node: BlockNode, end: number): boolean {
  if (end <= node.size) return true;
  return (node.taken & PERM_RESIZE) !== 0 && node.driver.truncate !== undefined;
}

async function tracked(
  node: BlockNode,
  pending: Promise<number>,
  count: (bytes: number) => number,
): Promise<number> {
  node.inFlight.begin();
  try {
    return count(await pending);
  } finally {
    node.inFlight.end();
  }
}
