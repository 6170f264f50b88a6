// SPDX-License-Identifier: MIT
/** The cells of the benchmark of jobs: what is copied, whereto, over what, and who disturbs it. */
import { MIB } from '../cells.js';

/** Delay of the slow link, each way, milliseconds. */
export const LINK_DELAY_MS = 20;
/** What the narrow link carries, bytes a second. */
export const NARROW_LINK = 25 * MIB;

/** Share of the sparse source that holds data. */
export const DATA_SHARE = 0.1;

/** A client of the source that writes random blocks while the job runs. */
export interface WriterLoad {
  /** Bytes of one write. */
  readonly blockSize: number;
  readonly bytesPerSecond: number;
  /** Writes in flight at most. */
  readonly depth: number;
}

const WRITER: WriterLoad = { blockSize: 64 * 1024, bytesPerSecond: 20 * MIB, depth: 8 };
const FAST_WRITER: WriterLoad = { ...WRITER, bytesPerSecond: 2 * NARROW_LINK, depth: 16 };

export type JobKind = 'mirror' | 'backup' | 'incremental';
export type SourceKind = 'random' | 'sparse';
/** `none`: from file to file. */
export type LinkKind = 'loopback' | 'delay' | 'none';

export interface JobCell {
  readonly name: string;
  /** `mirror` is measured to READY, the others to their end. */
  readonly job: JobKind;
  readonly source: SourceKind;
  /** Share of the disk that the bitmap marks, of an incremental backup; 1 is all. */
  readonly dirty?: number;
  /** Name of a target in `TARGETS`. */
  readonly target: string;
  readonly link: LinkKind;
  /** What the link carries, bytes a second; unlimited when absent. */
  readonly linkRate?: number;
  readonly writer?: WriterLoad;
  /** Of the mirror. The cell is left out for a daemon whose schema does not know it. */
  readonly copyMode?: string;
  /** Share of the benchmark's disk size that this cell uses; 1 when absent. */
  readonly sizeShare?: number;
}

export const TARGET_NAMES = ['qemu-storage-daemon', 'nbdkit memory', 'diskferryd'] as const;
export const LINK_NAMES: Readonly<Record<LinkKind, string>> = {
  loopback: 'loopback',
  delay: `${LINK_DELAY_MS} ms`,
  none: 'chain',
};

type Work = Pick<JobCell, 'job' | 'source' | 'dirty' | 'writer'> & { readonly what: string };

const WORKS: readonly Work[] = [
  { what: 'mirror random', job: 'mirror', source: 'random' },
  { what: 'mirror sparse', job: 'mirror', source: 'sparse' },
  { what: 'backup random', job: 'backup', source: 'random' },
  { what: 'backup sparse', job: 'backup', source: 'sparse' },
  { what: 'incremental 1 %', job: 'incremental', source: 'random', dirty: 0.01 },
  { what: 'incremental 50 %', job: 'incremental', source: 'random', dirty: 0.5 },
  { what: 'mirror random, writer', job: 'mirror', source: 'random', writer: WRITER },
  { what: 'backup random, writer', job: 'backup', source: 'random', writer: WRITER },
  {
    what: 'incremental 50 %, writer',
    job: 'incremental',
    source: 'random',
    dirty: 0.5,
    writer: WRITER,
  },
];

/** A writer that is faster than the link, which only a mirror that slows it down can follow. */
const OVERTAKEN: JobCell = {
  name: 'narrow link mirror auto, writer at twice its speed',
  job: 'mirror',
  source: 'random',
  target: 'qemu-storage-daemon',
  link: 'delay',
  linkRate: NARROW_LINK,
  writer: FAST_WRITER,
  copyMode: 'auto',
  sizeShare: 0.25,
};

/** Every cell, in the order of the table. */
export const JOB_CELLS: readonly JobCell[] = [
  ...(['loopback', 'delay'] as const).flatMap((link) =>
    WORKS.flatMap(({ what, ...work }) =>
      TARGET_NAMES.map((target) => ({
        ...work,
        name: `${LINK_NAMES[link]} ${what} to ${target}`,
        target,
        link,
      })),
    ),
  ),
  OVERTAKEN,
];

/** Jobs on a chain of qcow2 images of three layers, each with a third of the data. */
export type ChainJob = 'stream' | 'commit' | 'active commit' | 'mirror' | 'backup to qcow2';

export interface ChainCell {
  readonly name: string;
  readonly job: ChainJob;
  readonly link: 'none';
}

export const CHAIN_DEPTH = 3;
export const CHAIN_CELLS: readonly ChainCell[] = (
  ['stream', 'commit', 'active commit', 'mirror', 'backup to qcow2'] as const
).map((job) => ({ name: `${LINK_NAMES.none} ${job}`, job, link: 'none' }));

/** Cells other than those of `JOB_CELLS`, as `--only` names them. */
export const NBDCOPY_TARGETS = ['qemu-storage-daemon', 'nbdkit memory'] as const;
export const nbdcopyCell = (target: string): string => `loopback nbdcopy random to ${target}`;
export const LATENCY_CELL = 'loopback read latency';
