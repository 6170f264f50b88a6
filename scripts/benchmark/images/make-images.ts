// SPDX-License-Identifier: MIT
/** The images of the benchmark, all made by QEMU's own tools, so that both sides get the same. */
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { KIB, MIB } from '../cells.js';
import { makeImage, syncFile } from '../measure.js';
import { run } from '../processes.js';
import { type ImageKind, sizeOfKind } from './cells.js';

/** What belongs to one layer, bytes. */
const PIECE = 128 * KIB;
/** Share of the sparse image that is data. */
const SPARSE_PIECE = MIB;
const SPARSE_EVERY = 10;
/** As many commands as one call of qemu-io gets. */
const COMMANDS_MAX = 1000;

export interface ImageSet {
  readonly dir: string;
  /** Virtual size, bytes. */
  readonly size: number;
}

/** A generator of arbitrary numbers that is the same in every run. */
function arbitrary(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** The file of a kind of image; layers below it lie beside it. */
export function imagePath({ dir }: ImageSet, kind: ImageKind): string {
  return join(dir, kind === 'raw' ? 'raw.img' : `${kind}.qcow2`);
}

/** The raw file of random data from which everything is made. */
export const rawPath = (set: ImageSet): string => imagePath(set, 'raw');
export const sparsePath = ({ dir }: ImageSet): string => join(dir, 'sparse.img');

/** Makes an image of a kind, and what lies below it. The raw file must be there. */
export async function makeKind(set: ImageSet, kind: ImageKind): Promise<void> {
  await mkdir(set.dir, { recursive: true });
  switch (kind) {
    case 'raw':
      return makeImage(rawPath(set), { size: set.size });
    case 'full':
      return convertRaw(rawPath(set), imagePath(set, kind));
    case 'half':
      return makeHalf(set);
    case 'chain3':
      return makeChain(set, kind, { depth: 4, spread: true });
    case 'depth8':
      return makeChain(set, kind, { depth: 8, spread: true });
    case 'depth8-bottom':
      return makeChain(set, kind, { depth: 8, spread: false });
    case 'empty':
      await makeEmpty(imagePath(set, kind), sizeOfKind(kind, set.size));
  }
}

async function makeEmpty(path: string, size: number): Promise<void> {
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', path, `${size}`]);
}

async function convertRaw(from: string, to: string): Promise<void> {
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', from, to]);
}

/** Copies the pieces that `wanted` chooses; the others are holes. */
async function copyPieces(
  from: string,
  to: string,
  { size, piece, wanted }: { size: number; piece: number; wanted: (nth: number) => boolean },
): Promise<void> {
  const source = await open(from, 'r');
  const target = await open(to, 'w');
  try {
    await target.truncate(size);
    const buffer = Buffer.allocUnsafe(piece);
    for (let nth = 0; nth * piece < size; nth++) {
      if (!wanted(nth)) continue;
      const length = Math.min(piece, size - nth * piece);
      await source.read(buffer, 0, length, nth * piece);
      await target.write(buffer, 0, length, nth * piece);
    }
  } finally {
    await source.close();
    await target.close();
  }
}

async function makeHalf(set: ImageSet): Promise<void> {
  const halved = join(set.dir, 'half.img');
  const next = arbitrary(1);
  const options = { size: set.size, piece: PIECE, wanted: () => next() < 0.5 };
  await copyPieces(rawPath(set), halved, options);
  await convertRaw(halved, imagePath(set, 'half'));
}

/** Data in every tenth piece, and holes between: the source of conversions. */
export async function makeSparse(set: ImageSet): Promise<void> {
  const wanted = (nth: number): boolean => nth % SPARSE_EVERY === 0;
  const options = { size: set.size, piece: SPARSE_PIECE, wanted };
  await copyPieces(rawPath(set), sparsePath(set), options);
}

/** @param spread each piece is in an arbitrary layer; else all are in the lowest */
async function makeChain(
  set: ImageSet,
  kind: ImageKind,
  { depth, spread }: { readonly depth: number; readonly spread: boolean },
): Promise<void> {
  const layers = Array.from({ length: depth }, (_, level) =>
    level === depth - 1 ? imagePath(set, kind) : join(set.dir, `${kind}-${level}.qcow2`),
  );
  await makeLayers(set, layers, { spread });
}

/**
 * Makes a chain, the first layer the lowest; it has all pieces, and each further one, with `spread`,
 * an equal share of them, so that an equal share remains to be read from the lowest.
 */
export async function makeLayers(
  set: ImageSet,
  layers: readonly string[],
  { spread }: { readonly spread: boolean },
): Promise<void> {
  const [lowest = '', ...others] = layers;
  await convertRaw(rawPath(set), lowest);
  const next = arbitrary(layers.length);
  const commands: string[][] = layers.map(() => []);
  for (let offset = 0; spread && offset < set.size; offset += PIECE) {
    const level = Math.floor(next() * layers.length);
    const length = Math.min(PIECE, set.size - offset);
    commands[level]?.push('-c', `write -q -P ${level + 1} ${offset} ${length}`);
  }
  let below = lowest;
  for (const [at, layer] of others.entries()) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', below, layer]);
    const words = commands[at + 1] ?? [];
    for (let from = 0; from < words.length; from += 2 * COMMANDS_MAX) {
      // Unsafe: only this run uses the images.
      const some = words.slice(from, from + 2 * COMMANDS_MAX);
      await run('qemu-io', ['-f', 'qcow2', '-t', 'unsafe', ...some, layer]);
    }
    below = layer;
  }
  for (const layer of layers) await syncFile(layer);
}
