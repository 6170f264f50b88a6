// SPDX-License-Identifier: MIT
/** The cells of the serving benchmark: what a client does to the export. */

export const KIB = 1024;
export const MIB = 1024 * KIB;

/** Size of the image in every cell, bytes. */
export const IMAGE_SIZE = 1024 * MIB;

/** A cell that fio carries out: the same job file for every server. */
export interface FioWork {
  readonly tool: 'fio';
  readonly rw: 'randread' | 'randwrite' | 'randrw' | 'read' | 'write' | 'trim';
  /** Bytes of one request. */
  readonly blockSize: number;
  /** Requests in flight on each connection. */
  readonly depth: number;
  readonly connections: number;
  /** Once over the image instead of for a time: its cost depends on what was there before. */
  readonly once?: boolean;
  /** Where in the export it begins, bytes; 0 when absent. */
  readonly offset?: number;
  /** Ends after so many bytes instead of after a time. */
  readonly ioSize?: number;
  /** A flush after this many writes. */
  readonly flushEvery?: number;
}

/** A cell that another client carries out, once over the whole image. */
export interface PassWork {
  readonly tool: 'nbdsh-zeroes' | 'nbdcopy' | 'qemu-img-convert';
}

export interface Cell {
  readonly name: string;
  /** What the rate counts. */
  readonly unit: 'requests' | 'bytes';
  /** The image loses its data, so each run gets a fresh one. */
  readonly destroys?: boolean;
  readonly work: FioWork | PassWork;
}

/** Bytes and requests in flight of the pass that writes zeroes; trims use the same. */
export const ZEROES = { blockSize: 64 * KIB, depth: 16 } as const;

function fio(
  name: string,
  work: Omit<FioWork, 'tool' | 'connections'> & { connections?: number },
): Cell {
  return {
    name,
    unit: work.blockSize < 64 * KIB ? 'requests' : 'bytes',
    work: { tool: 'fio', connections: 1, ...work },
  };
}

const ONE_CONNECTION: readonly Cell[] = [
  fio('4k-randread-d1', { rw: 'randread', blockSize: 4 * KIB, depth: 1 }),
  fio('4k-randread-d32', { rw: 'randread', blockSize: 4 * KIB, depth: 32 }),
  fio('4k-randwrite-d1', { rw: 'randwrite', blockSize: 4 * KIB, depth: 1 }),
  fio('4k-randwrite-d32', { rw: 'randwrite', blockSize: 4 * KIB, depth: 32 }),
  fio('4k-mixed70-d1', { rw: 'randrw', blockSize: 4 * KIB, depth: 1 }),
  fio('4k-mixed70-d32', { rw: 'randrw', blockSize: 4 * KIB, depth: 32 }),
  fio('4k-write-flush16', { rw: 'randwrite', blockSize: 4 * KIB, depth: 16, flushEvery: 16 }),
  fio('64k-read-d16', { rw: 'read', blockSize: 64 * KIB, depth: 16 }),
  fio('64k-write-d16', { rw: 'write', blockSize: 64 * KIB, depth: 16 }),
  fio('1m-read-d4', { rw: 'read', blockSize: MIB, depth: 4 }),
  fio('1m-write-d4', { rw: 'write', blockSize: MIB, depth: 4 }),
];

const PASSES: readonly Cell[] = [
  { name: '64k-zeroes-d16', unit: 'requests', destroys: true, work: { tool: 'nbdsh-zeroes' } },
  {
    ...fio('64k-trim-d16', { rw: 'trim', ...ZEROES, once: true }),
    unit: 'requests',
    destroys: true,
  },
  { name: 'nbdcopy-out', unit: 'bytes', work: { tool: 'nbdcopy' } },
  { name: 'qemu-img-convert-out', unit: 'bytes', work: { tool: 'qemu-img-convert' } },
];

function manyConnections(connections: number): Cell[] {
  const name = (what: string): string => `${what}-c${connections}`;
  const small = { blockSize: 4 * KIB, depth: 32, connections };
  return [
    fio(name('4k-randread-d32'), { rw: 'randread', ...small }),
    fio(name('4k-randwrite-d32'), { rw: 'randwrite', ...small }),
    fio(name('64k-read-d16'), { rw: 'read', blockSize: 64 * KIB, depth: 16, connections }),
    fio(name('1m-write-d4'), { rw: 'write', blockSize: MIB, depth: 4, connections }),
  ];
}

/** Every cell, in the order of the table; each is run over every transport. */
export const CELLS: readonly Cell[] = [
  ...ONE_CONNECTION,
  ...PASSES,
  ...manyConnections(4),
  ...manyConnections(16),
];

/** Name and number of connections of the cells that show memory under many clients. */
export const MEMORY_CONNECTIONS = 16;

export function connectionsOf(cell: Cell): number {
  return cell.work.tool === 'fio' ? cell.work.connections : 1;
}
