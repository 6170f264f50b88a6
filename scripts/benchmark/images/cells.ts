// SPDX-License-Identifier: MIT
/** The cells of the benchmark of images: which image, and what a client does to it. */
import { type FioWork, KIB, MIB } from '../cells.js';

/** The images that are served. Each has the same virtual size and, but for `empty`, the same guest data. */
export const IMAGE_KINDS = [
  /** The bytes as they are: what the format costs shows beside it. */
  'raw',
  /** qcow2, every cluster allocated. */
  'full',
  /** qcow2, about half of its pieces allocated, in an arbitrary pattern. */
  'half',
  /** Three backing files below it; every layer has a quarter of the pieces. */
  'chain3',
  /** Depth 8: seven backing files below it, an eighth of the pieces in each. */
  'depth8',
  /** Depth 8, all data in the lowest layer: the longest way that a read can have. */
  'depth8-bottom',
  /** qcow2 without data: every write allocates. */
  'empty',
] as const;
export type ImageKind = (typeof IMAGE_KINDS)[number];

export interface ImageCell {
  /** Name of the image and of the work, as in `full 4k-randread-d32`. */
  readonly name: string;
  readonly image: ImageKind;
  readonly unit: 'requests' | 'bytes';
  /** It allocates: each run gets a fresh copy of the image, which is checked afterwards. */
  readonly allocates: boolean;
  readonly work: FioWork;
}

interface Load {
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockSize: number;
  readonly depth: number;
}

const load = (rw: Load['rw'], kibibytes: number, depth: number): Load => ({
  rw,
  blockSize: kibibytes * KIB,
  depth,
});

const READS: readonly Load[] = [
  load('randread', 4, 1),
  load('randread', 4, 32),
  load('read', 4, 32),
  load('randread', 64, 32),
  load('read', 64, 1),
  load('read', 64, 32),
  load('read', 1024, 32),
];
const WRITES: readonly Load[] = [
  load('randwrite', 4, 1),
  load('randwrite', 4, 32),
  load('write', 4, 32),
  load('write', 64, 1),
  load('write', 64, 32),
  load('write', 1024, 32),
];
const FEW_READS = [load('randread', 4, 32), load('read', 64, 32), load('read', 1024, 32)];
const FEW_WRITES = [load('randwrite', 4, 32), load('write', 64, 32)];
const RAW = [...FEW_READS, ...FEW_WRITES, load('write', 1024, 32)];

/** Random small writes allocate most clusters when there are as many of them as clusters. */
const RANDOM_ALLOCATION_SHARE = 1 / 16;

const size = (bytes: number): string => (bytes < MIB ? `${bytes / KIB}k` : `${bytes / MIB}m`);

function cell(image: ImageKind, { rw, blockSize, depth }: Load): ImageCell {
  const allocates = rw.endsWith('write') && image !== 'raw' && image !== 'full';
  return {
    name: `${image} ${size(blockSize)}-${rw}-d${depth}`,
    image,
    unit: blockSize < 64 * KIB ? 'requests' : 'bytes',
    allocates,
    work: { tool: 'fio', rw, blockSize, depth, connections: 1, once: allocates },
  };
}

/** An image without data costs nothing, so it is larger: its cells go over it only once. */
const EMPTY_FACTOR = 4;

/** Virtual size of a kind of image, bytes. @param size that of the others */
export function sizeOfKind(kind: ImageKind, size: number): number {
  return kind === 'empty' ? EMPTY_FACTOR * size : size;
}

/** Of an image to which a cell can go only once, the first part is for the warm-up. */
const WARM_UP_SHARE = 0.25;

/** A load, and the part of the export that it goes to, bytes. */
export interface Part {
  readonly work: FioWork;
  readonly size: number;
}

/** What fio does to an image of `imageSize` bytes: first to warm up, then to be measured. */
export function partsOf({ allocates, work }: ImageCell, imageSize: number) {
  if (!allocates) {
    const whole = { work, size: imageSize };
    return { warmUp: whole, measured: whole };
  }
  const parted = Math.floor((imageSize * WARM_UP_SHARE) / MIB) * MIB;
  return { warmUp: part(work, 0, parted), measured: part(work, parted, imageSize - parted) };
}

function part(work: FioWork, offset: number, size: number): Part {
  if (work.rw !== 'randwrite') return { work: { ...work, offset }, size };
  const ioSize = Math.floor((size * RANDOM_ALLOCATION_SHARE) / work.blockSize);
  return { work: { ...work, offset, ioSize: Math.max(1, ioSize) * work.blockSize }, size };
}

const cells = (image: ImageKind, loads: readonly Load[]): ImageCell[] =>
  loads.map((one) => cell(image, one));

/** Every cell, in the order of the table. */
export const IMAGE_CELLS: readonly ImageCell[] = [
  ...cells('raw', RAW),
  ...cells('full', [...READS, ...WRITES]),
  ...cells('half', [...FEW_READS, ...FEW_WRITES]),
  ...cells('chain3', [...FEW_READS, ...FEW_WRITES]),
  ...cells('depth8', FEW_READS),
  ...cells('depth8-bottom', FEW_READS),
  ...cells('empty', WRITES),
];

/** What `img convert` is given and makes. */
export interface ConvertCell {
  readonly name: string;
  readonly source: 'full' | 'sparse';
  readonly from: 'raw' | 'qcow2';
  readonly to: 'raw' | 'qcow2';
}

const DIRECTIONS = [
  ['raw', 'qcow2'],
  ['qcow2', 'raw'],
  ['qcow2', 'qcow2'],
] as const;

export const CONVERT_CELLS: readonly ConvertCell[] = (['full', 'sparse'] as const).flatMap(
  (source) =>
    DIRECTIONS.map(([from, to]) => ({
      name: `convert ${source} ${from} to ${to}`,
      source,
      from,
      to,
    })),
);

/** Cluster sizes of the huge image that is opened; the smaller one has the longer L1 table. */
export const OPEN_CELLS = [
  { name: 'open 64 TiB, 64 KiB clusters', clusterSize: 64 * KIB },
  { name: 'open 64 TiB, 2 MiB clusters', clusterSize: 2 * MIB },
] as const;
/** Virtual size of it. */
export const HUGE_SIZE = '64T';
