// SPDX-License-Identifier: MIT
/** `diskferry img map`: where the content of an image lies. */
import { BlockError } from '../../base/errors.js';
import type { BlockBackend } from '../../block/backend.js';
import {
  STATUS_ALLOCATED,
  STATUS_COMPRESSED,
  STATUS_DATA,
  STATUS_ZERO,
} from '../../block/block-driver.js';
import { type ChainExtent, chainStatus } from '../../block/block-status.js';
import { chainNext, skipFilters } from '../../block/chain.js';
import type { BlockNode } from '../../block/node.js';
import { COMMON, OUTPUT, parseImgArguments, wantsJson, wordsFor } from './arguments.js';
import { ImageSession } from './session.js';
import { parseSize } from './sizes.js';

interface MapEntry {
  readonly start: number;
  length: number;
  /** 0 is the image itself, 1 its backing file … */
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed: boolean;
  /** Bytes, in `file`; absent where the bytes don't lie anywhere as they are. */
  readonly offset?: number;
  readonly file?: BlockNode;
}

export async function map(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...OUTPUT,
    'start-offset': { type: 'string', short: 's' },
    'max-length': { type: 'string', short: 'l' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const json = wantsJson(values.output);
  const start = parseSize(values['start-offset'] ?? '0', '--start-offset');
  const most = values['max-length'];
  const longest = most === undefined ? Number.POSITIVE_INFINITY : parseSize(most, '--max-length');
  return ImageSession.run(values.object, async (session) => {
    const image = await session.open({
      name,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
    });
    const end = Math.min(image.size, start + longest);
    const entries: MapEntry[] = [];
    for await (const entry of mapEntries(image, start, end)) entries.push(entry);
    process.stdout.write(json ? jsonText(entries) : humanText(entries));
    return 0;
  });
}

/** Runs that are alike in everything, as long as they get. */
async function* mapEntries(
  image: BlockBackend,
  start: number,
  end: number,
): AsyncGenerator<MapEntry> {
  let current: MapEntry | undefined;
  for (let offset = start; offset < end; ) {
    const entry = await entryAt(image, offset, end - offset);
    offset += entry.length;
    if (current !== undefined && continues(current, entry)) current.length += entry.length;
    else {
      if (current !== undefined) yield current;
      current = entry;
    }
  }
  const none = { length: 0, depth: 0, present: false, zero: false, data: false, compressed: false };
  yield current ?? { start, ...none };
}

/**
 * As qemu-img: the first layer that has the bytes, or beneath which there is nothing: it is the last,
 * or longer than the one below it there.
 */
async function entryAt(image: BlockBackend, start: number, most: number): Promise<MapEntry> {
  let node = skipFilters(image.root.node);
  let length = most;
  for (let depth = 0; ; depth++) {
    const next = chainNext(node);
    const below = next === undefined ? undefined : skipFilters(next);
    const extent = await chainStatus(node, start, length, next);
    length = extent.length;
    if (extent.depth > 0) return entryOf(extent, start, depth);
    const left = (below?.size ?? 0) - start;
    if (below === undefined || left <= 0) {
      return entryOf({ ...extent, flags: extent.flags | STATUS_ZERO }, start, depth);
    }
    length = Math.min(length, left);
    node = below;
  }
}

function entryOf({ length, flags, host }: ChainExtent, start: number, depth: number): MapEntry {
  const has = (flag: number): boolean => (flags & flag) !== 0;
  return {
    start,
    length,
    depth,
    present: has(STATUS_ALLOCATED),
    zero: has(STATUS_ZERO),
    data: has(STATUS_DATA),
    compressed: has(STATUS_COMPRESSED),
    ...(host !== undefined ? { offset: host.offset, file: host.node } : {}),
  };
}

function continues(a: MapEntry, b: MapEntry): boolean {
  if (a.zero !== b.zero || a.data !== b.data || a.depth !== b.depth) return false;
  if (a.present !== b.present || a.compressed !== b.compressed || a.file !== b.file) return false;
  return a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset;
}

function jsonText(entries: readonly MapEntry[]): string {
  const lines = entries.map(({ start, length, depth, present, zero, data, compressed, offset }) =>
    JSON.stringify({
      start,
      length,
      depth,
      present,
      zero,
      data,
      compressed,
      ...(offset !== undefined ? { offset } : {}),
    }),
  );
  return `[${lines.join(',\n')}]\n`;
}

const HEAD = 'Offset          Length          Mapped to       File\n';

/** @throws BlockError when there is data that no file has as it is */
function humanText(entries: readonly MapEntry[]): string {
  let text = HEAD;
  const hex = (value: number): string => (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(16);
  for (const { start, length, zero, data, offset, file } of entries) {
    if (!data || zero) continue;
    if (offset === undefined || file === undefined) {
      throw new BlockError(
        'DF_NOT_SUPPORTED',
        'File contains external, encrypted or compressed clusters.',
      );
    }
    text += `${hex(start)}${hex(length)}${hex(offset)}${file.driver.filename}\n`;
  }
  return text;
}
