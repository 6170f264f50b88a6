// SPDX-License-Identifier: MIT
/** Checking an image by its format: what `img check` asks of a driver, and what it is told. */
import type { ChildEdge } from './edge.js';

/** What may be changed: nothing, counts of clusters that nobody uses, or all that can be mended. */
export type CheckFix = 'none' | 'leaks' | 'all';

export interface CheckRequest {
  /** The node that the image lies on; writable where something is to be mended. Nobody else writes. */
  readonly file: ChildEdge;
  readonly fix: CheckFix;
  /** A line for the one who asked: what is wrong where, what is mended. */
  readonly say: (text: string) => void;
}

/** @see qapi ImageCheck. All counts, but for `imageEndOffset`. */
export interface CheckResult {
  /** What is wrong now and endangers data. */
  readonly corruptions: number;
  /** Clusters that are counted as used, and nothing refers to. */
  readonly leaks: number;
  /** What could not be looked at. */
  readonly checkErrors: number;
  readonly corruptionsFixed: number;
  readonly leaksFixed: number;
  /** Where the last used cluster ends, bytes. */
  readonly imageEndOffset: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
}

/** Part of a driver's definition, where its format can be checked. */
export interface ImageChecker {
  /**
   * Looks at the whole of an image that nobody has open. What it mends is durable when it is done.
   * @throws BlockError for what is no such image at all, and when the medium fails
   */
  check(request: CheckRequest): Promise<CheckResult>;
}
