// SPDX-License-Identifier: MIT
/** Random parameters of qcow2 images, and images that have them: some by qemu-img, some made here. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createQcow2, type Qcow2CreateOptions } from '../../src/block/driver/qcow2/create.js';
import { RESIZER, useNode } from '../unit/block/driver/test-graph.js';
import type { PeerShell } from './peer-shell.js';
import { KIB, MIB, pattern } from './qcow2.js';
import type { Random } from './qcow2-model.js';

export interface Parameters {
  readonly version: 2 | 3;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  readonly lazy: boolean;
  readonly dataFile: 'none' | 'mapped' | 'raw';
  /** Layers below, the lowest last: format and size, bytes. */
  readonly below: readonly { readonly format: 'raw' | 'qcow2'; readonly size: number }[];
  readonly preallocation: 'off' | 'metadata' | 'falloc' | 'full';
  readonly size: number;
  readonly madeBy: 'qemu-img' | 'diskferry';
}

const CLUSTERS = [512, 512, KIB, 2 * KIB, 4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB, 2 * MIB];
const SIZES = [64 * KIB, 300 * KIB + 512, 1 * MIB + 512, 3 * MIB, 5 * MIB - 1536];

export function randomParameters(random: Random): Parameters {
  const version = random.below(6) === 0 ? 2 : 3;
  const extendedL2 = version === 3 && random.below(4) === 0;
  const clusterSize = random.pick(extendedL2 ? [16 * KIB, 32 * KIB, 64 * KIB, 1 * MIB] : CLUSTERS);
  const size = random.pick(clusterSize === 512 ? SIZES.slice(0, 3) : SIZES);
  const dataFile =
    version === 3 ? random.pick(['none', 'none', 'none', 'mapped', 'raw'] as const) : 'none';
  const layers = dataFile === 'raw' ? 0 : random.pick([0, 0, 0, 1, 1, 2]);
  const below = Array.from({ length: layers }, (_, nth) => ({
    format: nth < layers - 1 ? ('qcow2' as const) : random.pick(['raw', 'qcow2'] as const),
    size: random.pick([size, Math.ceil(size / 1024) * 512, size + 64 * KIB, size + 1536]),
  }));
  const preallocation =
    layers > 0 ? 'off' : random.pick(['off', 'off', 'off', 'metadata', 'falloc', 'full'] as const);
  return {
    ...{ version, clusterSize, extendedL2, size, dataFile, below, preallocation },
    refcountBits: version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 16, 32, 64]),
    lazy: version === 3 && random.below(4) === 0,
    madeBy: random.pick(['qemu-img', 'diskferry'] as const),
  };
}

interface Makers {
  readonly random: Random;
  readonly shell: PeerShell;
}

export interface MadeImage {
  readonly path: string;
  /** What it reads as at first. */
  readonly content: Buffer;
}

/** Makes `image`, and its layers and its data file, in a folder. */
export async function makeImage(
  dir: string,
  parameters: Parameters,
  by: Makers,
): Promise<MadeImage> {
  const { below, size } = parameters;
  const path = join(dir, 'image');
  let shown: Buffer = Buffer.alloc(0);
  for (let nth = below.length - 1; nth >= 0; nth--) {
    const layer = below[nth];
    if (layer !== undefined) shown = await makeLayer(dir, nth, layer, { below, shown, by });
  }
  if (parameters.madeBy === 'qemu-img') await byQemu(by.shell, { dir, path, parameters });
  else await byUs(dir, path, parameters);
  const content = Buffer.alloc(size);
  shown.copy(content);
  return { path, content };
}

async function makeLayer(
  dir: string,
  nth: number,
  { format, size }: Parameters['below'][number],
  more: { readonly below: Parameters['below']; readonly shown: Buffer; readonly by: Makers },
): Promise<Buffer> {
  const { below, shown, by } = more;
  const { random, shell } = by;
  const path = join(dir, `below${nth}`);
  if (format === 'raw') {
    const bytes = pattern(size, 7777 + nth);
    await writeFile(path, bytes);
    return bytes;
  }
  const content = Buffer.alloc(size);
  shown.copy(content);
  const next = below[nth + 1];
  const named = next === undefined ? [] : ['-b', `below${nth + 1}`, '-F', next.format];
  const clusters = random.pick([512, 4 * KIB, 64 * KIB]);
  await create(shell, path, { size, options: `cluster_size=${clusters}`, named });
  const commands: string[] = [];
  for (let write = 0; write < 4; write++) {
    const at = random.below(size / 512) * 512;
    const length = Math.min(512 * (1 + random.below(200)), size - at);
    const zero = random.below(4) === 0;
    commands.push(zero ? `write -z ${at} ${length}` : `write -P ${100 + write} ${at} ${length}`);
    content.fill(zero ? 0 : 100 + write, at, at + length);
  }
  const args = commands.flatMap((command) => ['-c', command]);
  await shell.expect('qemu-io', ['-f', 'qcow2', ...args, path]);
  return content;
}

const onOff = (value: boolean): string => (value ? 'on' : 'off');

interface Place {
  readonly dir: string;
  readonly path: string;
  readonly parameters: Parameters;
}

async function byQemu(shell: PeerShell, { dir, path, parameters }: Place): Promise<void> {
  const { version, clusterSize, refcountBits, extendedL2, lazy, dataFile, below } = parameters;
  const options = [`cluster_size=${clusterSize}`, `compat=${version === 2 ? '0.10' : '1.1'}`];
  if (version === 3) {
    options.push(`refcount_bits=${refcountBits}`, `extended_l2=${onOff(extendedL2)}`);
    options.push(`lazy_refcounts=${onOff(lazy)}`);
  }
  if (dataFile !== 'none') options.push(`data_file=${join(dir, 'data')}`);
  if (dataFile === 'raw') options.push('data_file_raw=on');
  const [layer] = below;
  if (layer === undefined) options.push(`preallocation=${parameters.preallocation}`);
  const named = layer === undefined ? [] : ['-b', 'below0', '-F', layer.format];
  await create(shell, path, { size: parameters.size, options: options.join(','), named });
}

async function create(
  shell: PeerShell,
  path: string,
  more: { readonly size: number; readonly options: string; readonly named: readonly string[] },
): Promise<void> {
  const { size, options, named } = more;
  const args = ['create', '-q', '-f', 'qcow2', '-o', options, ...named, path, String(size)];
  await shell.expect('qemu-img', args);
}

async function byUs(dir: string, path: string, parameters: Parameters): Promise<void> {
  const { version, clusterSize, refcountBits, extendedL2, lazy, dataFile, below } = parameters;
  const [layer] = below;
  await writeFile(path, '');
  const file = await useNode({ driver: 'file', filename: path }, RESIZER);
  const dataName = join(dir, 'data');
  if (dataFile !== 'none') await writeFile(dataName, '');
  const data =
    dataFile === 'none'
      ? undefined
      : await useNode({ driver: 'file', filename: dataName }, RESIZER);
  const options: Qcow2CreateOptions = {
    ...{ size: parameters.size, clusterSize, refcountBits, extendedL2, lazyRefcounts: lazy },
    version: version === 2 ? 'v2' : 'v3',
    preallocation: parameters.preallocation,
    ...(layer === undefined ? {} : { backingFile: 'below0', backingFormat: layer.format }),
    ...(data === undefined
      ? {}
      : { dataFile: data.node, dataFileName: dataName, dataFileRaw: dataFile === 'raw' }),
  };
  try {
    await createQcow2(file.node, options);
  } finally {
    await file.close();
    await data?.close();
  }
}

/** Options of a node on such an image: small caches, so that tables come and go. */
export function randomNodeOptions(
  random: Random,
  { clusterSize, version }: Pick<Parameters, 'clusterSize' | 'version'>,
): object {
  const slice = random.pick([512, Math.min(clusterSize, 4 * KIB), clusterSize]);
  return {
    ...(random.below(2) === 0 ? { 'l2-cache-entry-size': slice, 'l2-cache-size': 2 * slice } : {}),
    ...(random.below(4) === 0 ? { 'refcount-cache-size': 4 * clusterSize } : {}),
    ...(random.below(6) === 0 ? { 'cache-clean-interval': 1 } : {}),
    ...(random.below(3) === 0 ? { 'discard-no-unref': true } : {}),
    ...(random.below(3) === 0 ? { 'overlap-check': random.pick(['all', 'constant', 'none']) } : {}),
    ...(random.below(4) === 0 ? { 'pass-discard-request': false } : {}),
    ...(random.below(4) === 0 ? { 'pass-discard-other': true } : {}),
    ...(random.below(4) === 0 ? { 'pass-discard-snapshot': false } : {}),
    ...(random.below(6) === 0 ? { 'detect-zeroes': random.pick(['on', 'unmap']) } : {}),
    ...(version === 3 && random.below(6) === 0 ? { 'lazy-refcounts': random.below(2) === 0 } : {}),
  };
}
