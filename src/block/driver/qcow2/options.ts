// SPDX-License-Identifier: MIT
/** What qcow2 is told at open and by blockdev-reopen. @see qapi BlockdevOptionsQcow2 */
import { isPowerOfTwo } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import {
  QCOW2_CACHE_CLEAN_SECONDS_DEFAULT,
  QCOW2_L2_CACHE_DEFAULT,
  QCOW2_L2_SLICE_DEFAULT,
} from '../../../base/limits.js';
import type { DriverOptions } from '../../block-driver.js';
import type { Geometry } from './geometry.js';

/** Structures that writes are kept out of. */
const OVERLAP_CHECKS = [
  'main-header',
  'active-l1',
  'active-l2',
  'refcount-table',
  'refcount-block',
  'snapshot-table',
  'inactive-l1',
  'inactive-l2',
  'bitmap-directory',
] as const;
export type OverlapCheck = (typeof OVERLAP_CHECKS)[number];

const CONSTANT: readonly OverlapCheck[] = [
  'main-header',
  'active-l1',
  'refcount-table',
  'snapshot-table',
  'bitmap-directory',
];
const CACHED: readonly OverlapCheck[] = [...CONSTANT, 'active-l2', 'refcount-block', 'inactive-l1'];
const TEMPLATES: Readonly<Record<string, readonly OverlapCheck[]>> = {
  none: [],
  constant: CONSTANT,
  cached: CACHED,
  all: OVERLAP_CHECKS,
};

export interface Qcow2Options {
  /** Tables kept in memory, and how long each is, bytes. */
  readonly l2Slices: number;
  readonly sliceLength: number;
  readonly refcountBlocks: number;
  /** Seconds after which tables that nobody used are let go; 0: never. */
  readonly cleanInterval: number;
  readonly lazyRefcounts: boolean;
  /** Whether clusters that come free are discarded in the file, by what frees them. */
  readonly passDiscard: {
    readonly request: boolean;
    readonly snapshot: boolean;
    readonly other: boolean;
  };
  readonly discardNoUnref: boolean;
  readonly overlapChecks: ReadonlySet<OverlapCheck>;
}

export interface ImageFacts {
  readonly geometry: Geometry;
  /** Virtual size, bytes. */
  readonly size: number;
  /** The header's lazy-refcounts bit. */
  readonly lazyRefcounts: boolean;
  /** What the node does with discards. */
  readonly discard: 'ignore' | 'unmap';
}

/** @throws BlockError DF_INVALID naming the options, in QEMU's words */
export function parseQcow2Options(given: DriverOptions, facts: ImageFacts): Qcow2Options {
  const { geometry } = facts;
  const lazyRefcounts = (given['lazy-refcounts'] as boolean | undefined) ?? facts.lazyRefcounts;
  if (lazyRefcounts && geometry.version < 3) {
    throw invalid(
      'Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level',
    );
  }
  const cleanInterval = Number(given['cache-clean-interval'] ?? QCOW2_CACHE_CLEAN_SECONDS_DEFAULT);
  if (cleanInterval < 0 || cleanInterval > 2 ** 32 - 1)
    throw invalid('Cache clean interval too big');
  const flag = (key: string, fallback: boolean): boolean =>
    (given[key] as boolean | undefined) ?? fallback;
  return {
    ...parseCaches(given, facts),
    cleanInterval,
    lazyRefcounts,
    passDiscard: {
      request: flag('pass-discard-request', facts.discard === 'unmap'),
      snapshot: flag('pass-discard-snapshot', true),
      other: flag('pass-discard-other', false),
    },
    discardNoUnref: flag('discard-no-unref', false),
    overlapChecks: parseOverlapChecks(given['overlap-check']),
  };
}

function parseCaches(
  given: DriverOptions,
  { geometry, size }: ImageFacts,
): Pick<Qcow2Options, 'l2Slices' | 'sliceLength' | 'refcountBlocks'> {
  const { clusterSize, bytesPerL2 } = geometry;
  const number = (key: string): number | undefined =>
    given[key] === undefined ? undefined : Number(given[key]);
  const combined = number('cache-size');
  let l2 = number('l2-cache-size');
  let refcount = number('refcount-cache-size');
  const sliceLength =
    number('l2-cache-entry-size') ?? Math.min(QCOW2_L2_SLICE_DEFAULT, clusterSize);
  if (!isPowerOfTwo(sliceLength) || sliceLength < 512 || sliceLength > clusterSize) {
    throw invalid(
      `L2 cache entry size must be a power of two between 512 and the cluster size (${clusterSize})`,
    );
  }
  const refcountMin = 4 * clusterSize;
  // More than all tables of the image is of no use.
  const l2All = Math.ceil(size / bytesPerL2) * clusterSize;
  if (combined !== undefined) {
    [l2, refcount] = shareCache(combined, { l2, refcount, l2All, refcountMin });
  }
  l2 = Math.min(l2 ?? QCOW2_L2_CACHE_DEFAULT, Math.max(l2All, sliceLength));
  checkCacheSize('L2 cache', l2, sliceLength);
  checkCacheSize('Refcount cache', refcount ?? 0, clusterSize);
  return {
    sliceLength,
    l2Slices: Math.max(Math.floor(l2 / sliceLength), 2),
    refcountBlocks: Math.max(Math.floor((refcount ?? refcountMin) / clusterSize), 4),
  };
}

function shareCache(
  combined: number,
  {
    l2,
    refcount,
    l2All,
    refcountMin,
  }: {
    l2: number | undefined;
    refcount: number | undefined;
    l2All: number;
    refcountMin: number;
  },
): [l2: number, refcount: number] {
  if (l2 !== undefined && refcount !== undefined) {
    throw invalid(
      'cache-size, l2-cache-size and refcount-cache-size may not be set at the same time',
    );
  }
  if (l2 !== undefined) {
    if (l2 > combined) throw invalid('l2-cache-size may not exceed cache-size');
    return [l2, combined - l2];
  }
  if (refcount !== undefined) {
    if (refcount > combined) throw invalid('refcount-cache-size may not exceed cache-size');
    return [combined - refcount, refcount];
  }
  const forL2 = Math.min(l2All, Math.max(combined - refcountMin, 0));
  return [forL2, combined - forL2];
}

function checkCacheSize(what: string, bytes: number, tableLength: number): void {
  if (bytes < 0 || Math.floor(bytes / tableLength) > 2 ** 31 - 1)
    throw invalid(`${what} size too big`);
}

/** @param given a template's name, or an object of flags with an optional `template` */
function parseOverlapChecks(given: unknown): ReadonlySet<OverlapCheck> {
  if (given === undefined || typeof given === 'string') {
    return new Set(TEMPLATES[given ?? 'cached']);
  }
  const flags = given as Readonly<Record<string, unknown>>;
  const checks = new Set(TEMPLATES[String(flags.template ?? 'cached')]);
  for (const check of OVERLAP_CHECKS) {
    if (flags[check] === true) checks.add(check);
    if (flags[check] === false) checks.delete(check);
  }
  return checks;
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
