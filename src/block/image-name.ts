// SPDX-License-Identifier: MIT
/**
 * What a node is called by who has to find it again: a file name where that alone shows the same bytes,
 * else `json:` and the options that do. An image that notes a mere file name of a node that was opened
 * with another backing image than its header's, or with a window, would read as something else later.
 */
import path from 'node:path';
import type { BackingFile, DriverOptions } from './block-driver.js';
import { chainNext, skipFilters } from './chain.js';
import type { BlockNode } from './node.js';

const JSON_PREFIX = 'json:';

/** Options that say how a node is used, not what is read there. */
const USE_ONLY = new Set([
  ...['node-name', 'read-only', 'auto-read-only', 'force-share'],
  ...['discard', 'cache', 'detect-zeroes'],
  // What is below now, not what was when the node was opened.
  'backing',
]);

/** Nodes that will be put above others: so they are to be called, though they are not yet. */
const awaited = new WeakMap<BlockNode, BlockNode>();

/** @returns what ends the waiting: by now it lies there, or never will */
export function awaitBacking(overlay: BlockNode, below: BlockNode): () => void {
  awaited.set(overlay, below);
  return () => void awaited.delete(overlay);
}

function backingOf(layer: BlockNode): BlockNode | undefined {
  return layer.children.get('backing')?.node ?? awaited.get(layer);
}

/** `asGiven`: as queries show it; `absolute`: also understood in another folder. */
type Paths = 'asGiven' | 'absolute';

/** What queries call a node. @see qapi BlockDeviceInfo */
export async function shownName(node: BlockNode): Promise<string> {
  if (node.kind !== 'filter') return name(node, 'asGiven');
  const below = chainNext(node);
  const { filename } = node.driver;
  return below?.driver.filename === filename ? shownName(below) : filename;
}

/**
 * What an image notes when `base` is below it.
 * @param image file name of the image, from whose folder relative names start
 * @param options.filename instead of the base's own name
 * @param options.maskProtocol note `raw` where the base has no format
 */
export async function backingFileOf(
  image: string,
  base: BlockNode,
  options: { readonly filename?: string | undefined; readonly maskProtocol?: boolean } = {},
): Promise<BackingFile> {
  const layer = skipFilters(base);
  const masked = options.maskProtocol === true && layer.kind === 'protocol';
  return {
    filename: options.filename ?? nameSeenFrom(image, await name(layer, 'absolute')),
    format: masked ? 'raw' : layer.driver.name,
  };
}

async function name(layer: BlockNode, paths: Paths): Promise<string> {
  const { filename } = layer.driver;
  const isPlain = filename !== '' && liesOnFile(layer) && !(await isOverridden(layer));
  if (isPlain || filename.startsWith(JSON_PREFIX)) return filename;
  return JSON_PREFIX + JSON.stringify(await describe(layer, paths));
}

/** A name means one format on one file; not, say, a raw disk inside a qcow2 image. */
function liesOnFile({ children }: BlockNode): boolean {
  const file = children.get('file')?.node;
  return file === undefined || skipFilters(file).kind === 'protocol';
}

/** Its file alone would be opened with another chain below it. */
async function isOverridden(layer: BlockNode): Promise<boolean> {
  if (!layer.driver.features.backing) return false;
  const info = await layer.driver.formatInfo?.();
  const noted = info?.fullBackingFilename ?? '';
  const backing = backingOf(layer);
  if (backing === undefined) return noted !== '';
  const below = skipFilters(backing);
  const format = info?.backingFormat ?? below.driver.name;
  const sameFormat = format === below.driver.name || below.kind === 'protocol';
  return !sameFormat || !isSameName(noted, await name(below, 'absolute'));
}

/** The options that open the same bytes. */
async function describe(node: BlockNode, paths: Paths): Promise<DriverOptions> {
  const layer = skipFilters(node);
  const { name: driver, filename } = layer.driver;
  if (filename.startsWith(JSON_PREFIX)) return JSON.parse(filename.slice(JSON_PREFIX.length));
  if (driver === 'file' || driver === 'host_device') {
    return { driver, filename: paths === 'absolute' ? path.resolve(filename) : filename };
  }
  const { given } = layer.options;
  const own = Object.entries(given).filter(
    ([key, value]) => !USE_ONLY.has(key) && !layer.children.has(key) && value !== null,
  );
  const options: Record<string, unknown> = { ...Object.fromEntries(own), driver };
  for (const [key, { node: child }] of layer.children) {
    if (key !== 'backing') options[key] = await describe(child, paths);
  }
  if (layer.driver.features.backing && (await isOverridden(layer))) {
    const backing = backingOf(layer);
    options.backing = backing === undefined ? null : await describe(backing, paths);
  }
  return options;
}

function isSameName(one: string, other: string): boolean {
  if (one === other) return true;
  if (one.startsWith(JSON_PREFIX) && other.startsWith(JSON_PREFIX)) {
    return canonical(one) === canonical(other);
  }
  if (one === '' || isDescription(one) || isDescription(other)) return false;
  return path.resolve(one) === path.resolve(other);
}

/** The same for the same options, in whatever order and from whatever folder they are written. */
function canonical(described: string): string {
  try {
    return JSON.stringify(JSON.parse(described.slice(JSON_PREFIX.length)), (key, value) => {
      if (key === 'filename' && typeof value === 'string') return path.resolve(value);
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
      return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
    });
  } catch {
    // An image may note anything.
    return described;
  }
}

/** "json:…" or a name with a scheme. */
function isDescription(filename: string): boolean {
  return /^[^/:]+:/.test(filename);
}

/** A relative name in an image starts from the image's folder: it stays where that is the same. */
function nameSeenFrom(image: string, filename: string): string {
  if (filename === '' || path.isAbsolute(filename) || isDescription(filename)) return filename;
  const there = path.resolve(filename);
  return path.resolve(path.dirname(image), filename) === there ? filename : there;
}
