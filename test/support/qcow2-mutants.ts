// SPDX-License-Identifier: MIT
/** Images of each feature, made by QEMU's tools, and changes of their metadata. */
import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PeerShell } from './peer-shell.js';
import { MIB } from './qcow2.js';
import type { Random } from './qcow2-model.js';
import { testScope } from './temp.js';

/** Virtual size of each, bytes. */
export const MUTANT_SIZE = 4 * MIB;
const START_MAX = 16 * MIB;

export interface Kind {
  readonly name: string;
  readonly options: string;
  readonly backed?: boolean;
  readonly snapshot?: boolean;
  readonly bitmaps?: boolean;
  readonly compressed?: boolean;
}

const BITMAPS = { bitmaps: true };
const SNAPSHOT = { snapshot: true };
export const KINDS: readonly Kind[] = [
  { name: 'all together', options: 'cluster_size=4k', ...SNAPSHOT, ...BITMAPS, compressed: true },
  { name: 'extended L2 entries', options: 'cluster_size=16k,extended_l2=on', ...SNAPSHOT },
  { name: 'lazy refcounts', options: 'cluster_size=4k,lazy_refcounts=on', ...BITMAPS },
  { name: 'version 2', options: 'cluster_size=4k,compat=0.10', ...SNAPSHOT, compressed: true },
  { name: 'small clusters', options: 'cluster_size=512', ...SNAPSHOT },
  { name: 'counts of one bit', options: 'cluster_size=4k,refcount_bits=1', ...BITMAPS },
  { name: 'counts of 64 bits', options: 'cluster_size=4k,refcount_bits=64', ...SNAPSHOT },
  { name: 'a data file', options: 'cluster_size=4k,data_file=data', ...BITMAPS },
  { name: 'a raw data file', options: 'cluster_size=64k,data_file=data,data_file_raw=on' },
  { name: 'a chain', options: 'cluster_size=4k', backed: true, ...BITMAPS },
  { name: 'zstd', options: 'cluster_size=4k,compression_type=zstd' },
];

/** @returns the path of the image, in `dir` */
export async function makeKind(dir: string, kind: Kind, shell: PeerShell): Promise<string> {
  const path = join(dir, 'image');
  const img = (...args: string[]): Promise<string> => shell.expect('qemu-img', args);
  const io = (...commands: string[]): Promise<string> =>
    shell.expect('qemu-io', ['-f', 'qcow2', ...commands.flatMap((each) => ['-c', each]), path]);
  const named = kind.backed === true ? ['-b', join(dir, 'base'), '-F', 'qcow2'] : [];
  if (kind.backed === true) await img('create', '-q', '-f', 'qcow2', join(dir, 'base'), '2M');
  const options = kind.options.replace('data_file=data', `data_file=${join(dir, 'data')}`);
  await img('create', '-q', '-f', 'qcow2', '-o', options, ...named, path, String(MUTANT_SIZE));
  await io('write -P 1 0 256k', 'write -z 256k 64k', 'write -P 7 3M 20k');
  if (kind.compressed === true) await io('write -c -P 4 512k 64k');
  if (kind.snapshot === true) await img('snapshot', '-c', 'first', path);
  if (kind.bitmaps === true) {
    await img('bitmap', '--add', '-g', '4096', path, 'one');
    await img('bitmap', '--add', path, 'two');
  }
  await io('write -P 2 64k 100k');
  if (kind.snapshot === true) await img('snapshot', '-c', 'second', path);
  await io('write -P 3 1M 8k');
  return path;
}

/** A part of the metadata: tables are of 64-bit numbers. */
interface Place {
  readonly at: number;
  readonly length: number;
}

const OFFSET = 0x00ff_ffff_ffff_fe00n;

/** Where an image has its structures. */
function placesOf(image: Buffer): Place[] {
  const clusterSize = 2 ** image.readUInt32BE(20);
  const number = (at: number): number =>
    at >= 0 && at + 8 <= image.byteLength ? Number(image.readBigUInt64BE(at) & OFFSET) : 0;
  const l1 = number(40);
  const table = number(48);
  const snapshots = number(64);
  const places: Place[] = [
    { at: 0, length: 112 },
    { at: 104, length: 400 },
    { at: l1, length: 8 * Math.min(image.readUInt32BE(36), 16) },
    { at: table, length: 32 },
    { at: number(table), length: 1024 },
    { at: snapshots, length: 200 },
  ];
  for (let index = 0; index < Math.min(image.readUInt32BE(36), 4); index++) {
    places.push({ at: number(l1 + 8 * index), length: clusterSize });
  }
  if (snapshots > 0) places.push({ at: number(snapshots), length: 16 });
  if (snapshots > 0) places.push({ at: number(number(snapshots)), length: clusterSize });
  const extension = image.indexOf(Buffer.from([0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]));
  if (extension > 0 && extension < clusterSize) {
    const directory = number(extension + 8 + 16);
    places.push({ at: extension, length: 32 }, { at: directory, length: 64 });
    places.push({ at: number(directory), length: 16 });
  }
  return places.filter(({ at, length }) => length > 0 && at + 8 <= image.byteLength);
}

const NUMBERS = [
  ...[0n, 1n, 512n, 4096n, 1n << 55n, 1n << 62n, (1n << 62n) | 4096n, 1n << 63n],
  ...[(1n << 63n) | 1n, 0x7fff_ffff_ffff_fe00n, 0xffff_ffff_ffff_ffffn, 0xffff_fe00n],
];

/** Changes some bytes of the metadata. @returns what was done */
function mutate(image: Buffer, random: Random): string {
  const places = placesOf(image);
  const told: string[] = [];
  for (let count = random.pick([1, 1, 1, 2, 4]); count > 0; count--) {
    const { at, length } = random.pick(places);
    // Entries at the front are those that are in use.
    const near = random.below(2) === 0 ? Math.min(length, 128) : length;
    const byte = Math.min(at + random.below(near), image.byteLength - 8);
    const word = byte - ((byte - at) % 8);
    const kind = random.below(6);
    told.push(`${kind} at ${byte}`);
    if (kind === 0) image.writeUInt8(random.below(256), byte);
    else if (kind === 1) image.writeUInt8((image[byte] ?? 0) ^ (1 << random.below(8)), byte);
    else if (kind === 2) {
      // Two structures in one place.
      image.writeBigUInt64BE(BigInt(random.pick(places).at) | (1n << 63n), word);
    } else if (kind === 3) {
      // Two users of one cluster, or an entry of another kind of table.
      const other = random.pick(places);
      const from = Math.min(other.at + 8 * random.below(8), image.byteLength - 8);
      image.copy(image, word, from, from + 8);
    } else if (kind === 4) image.writeBigUInt64BE(random.pick(NUMBERS), word);
    else image.writeUInt32BE(random.pick([0, 1, 0xffff, 0x7fff_ffff, 0xffff_ffff]), word);
  }
  return told.join(', ');
}

/** Metadata of an image as qemu-img judges it; undefined: it does not open it. */
export async function corruptions(path: string, shell: PeerShell): Promise<number | undefined> {
  const args = ['check', '-f', 'qcow2', '--output=json', path];
  const { output } = await shell.run('qemu-img', args);
  const start = output.indexOf('{');
  if (start < 0) return undefined;
  const report = JSON.parse(output.slice(start)) as {
    readonly corruptions?: number;
    readonly 'check-errors'?: number;
  };
  return (report.corruptions ?? 0) + (report['check-errors'] ?? 0);
}

/** A file's length and its first bytes: an entry far outside makes a file that is long and sparse. */
export async function readStart(path: string): Promise<{ size: number; bytes: Buffer }> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const bytes = Buffer.alloc(Math.min(size, START_MAX));
    await file.read(bytes, 0, bytes.byteLength, 0);
    return { size, bytes };
  } finally {
    await file.close();
  }
}

/** One of so many is judged by qemu-img too. */
const JUDGED = 4;

export interface Mutant {
  readonly kind: Kind;
  /** The image as it was changed, and its file. */
  readonly bytes: Buffer;
  readonly path: string;
  /** What chose the change; goes on from there. */
  readonly random: Random;
  /** Whether QEMU's tools are to judge it, too. */
  readonly judged: boolean;
  readonly shell: PeerShell;
  /** A folder for more files. */
  readonly dir: string;
}

/**
 * Changes an image of the kind at random, `count` times, each time from the original.
 * @param options.firstSeed of the first change; `randomOf` makes of each what chooses
 * @returns by how many bytes the process has grown
 * @throws Error that names the seed and the change of which `act` failed
 */
export async function eachMutant(
  kind: Kind,
  options: { count: number; firstSeed: number; randomOf(seed: number): Random },
  act: (mutant: Mutant) => Promise<void>,
): Promise<number> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const shell = new PeerShell(scope);
  const original = join(dir, 'original');
  await mkdir(original);
  const { bytes: image } = await readStart(await makeKind(original, kind, shell));
  const path = join(dir, 'mutant');
  const memory = process.memoryUsage.rss();
  for (let nth = 0; nth < options.count; nth++) {
    const seed = options.firstSeed + nth;
    const random = options.randomOf(seed);
    const bytes = Buffer.from(image);
    const told = mutate(bytes, random);
    await writeFile(path, bytes);
    try {
      await act({ kind, bytes, path, random, judged: nth % JUDGED === 0, shell, dir });
    } catch (cause) {
      throw new Error(`${kind.name}, seed ${seed}: ${told}`, { cause });
    }
  }
  return process.memoryUsage.rss() - memory;
}
