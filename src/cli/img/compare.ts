// SPDX-License-Identifier: MIT
/** `diskferry img compare`: is the content of two images the same? */
import type { BlockBackend } from '../../block/backend.js';
import { STATUS_ALLOCATED, STATUS_ZERO } from '../../block/block-driver.js';
import { isZero } from '../../block/shaped-requests.js';
import { COMMON, PROGRESS, parseImgArguments, wordsFor } from './arguments.js';
import { withExitStatus } from './exit-status.js';
import { withProgress } from './progress.js';
import { type CacheMode, cacheMode, type ImageRequest, ImageSession } from './session.js';

/** Bytes that are read of each image at a time. */
const CHUNK_LENGTH = 1 << 20;
/** The offset of a difference is told in sectors of so many bytes, as qemu-img does. */
const SECTOR = 512;
/** Exit status besides 0 (identical) and 1 (different). */
const OPEN_FAILED = 2;
const READ_FAILED = 4;

/** What a comparison found; undefined: no difference. */
type Difference = { readonly text: string } | undefined;

export async function compare(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...PROGRESS,
    'second-format': { type: 'string', short: 'F' },
    strict: { type: 'boolean', short: 's' },
    'source-cache': { type: 'string', short: 'T' },
  });
  const names = wordsFor(positionals, 'two image file names', 'two image file names');
  const formats = [values.format, values['second-format']];
  const { 'image-opts': imageOpts, 'force-share': forceShare } = values;
  const how = { imageOpts, forceShare, cache: sourceCache(values['source-cache']) };
  const requests = names.map((name, index) => ({ name, format: formats[index], ...how }));
  const strict = values.strict === true;
  const say = (text: string): void => {
    if (values.quiet !== true) process.stdout.write(`${text}\n`);
  };
  return ImageSession.run(values.object, async (session) => {
    const images = await openAll(session, requests);
    try {
      const difference = await withProgress('compare', values, (progress) =>
        compareImages(images, { strict, warn: say, progress }),
      );
      say(difference?.text ?? 'Images are identical.');
      return difference === undefined ? 0 : 1;
    } catch (error) {
      throw withExitStatus(error, READ_FAILED);
    }
  });
}

async function openAll(
  session: ImageSession,
  requests: readonly ImageRequest[],
): Promise<BlockBackend[]> {
  const images: BlockBackend[] = [];
  try {
    for (const request of requests) images.push(await session.open(request));
  } catch (error) {
    throw withExitStatus(error, OPEN_FAILED);
  }
  return images;
}

/** As everything but a difference, a wrong mode is no status 1. */
function sourceCache(name = 'writeback'): CacheMode {
  try {
    return cacheMode(name);
  } catch (error) {
    throw withExitStatus(error, OPEN_FAILED);
  }
}

interface CompareOptions {
  readonly strict: boolean;
  readonly warn: (text: string) => void;
  readonly progress: (done: number, total: number) => void;
}

async function compareImages(
  images: readonly BlockBackend[],
  { strict, warn, progress }: CompareOptions,
): Promise<Difference> {
  const sizes = images.map(({ size }) => size);
  const common = Math.min(...sizes);
  const total = Math.max(...sizes);
  if (common !== total && strict) return { text: 'Strict mode: Image size mismatch!' };
  for (let offset = 0; offset < total; ) {
    if (offset === common) warn('Warning: Image size mismatch!');
    const inside = images.filter(({ size }) => offset < size);
    const limit = offset < common ? common : total;
    const step = await compareStep(inside, { offset, most: limit - offset, strict });
    if (step.difference !== undefined) return step.difference;
    offset += step.length;
    progress(offset, total);
  }
  return undefined;
}

interface CompareStep {
  readonly offset: number;
  /** Bytes from there on that may be compared. */
  readonly most: number;
  readonly strict: boolean;
}

/** Compares a prefix of the range in both images, or what only one has with zeroes. */
async function compareStep(
  images: readonly BlockBackend[],
  { offset, most, strict }: CompareStep,
): Promise<{ readonly length: number; readonly difference?: Difference }> {
  const found = await Promise.all(images.map((image) => image.blockStatus(offset, most)));
  const length = Math.min(...found.map((extent) => extent.length));
  const [first, ...others] = found.map(({ flags }) => flags & STATUS_ALLOCATED);
  if (strict && others.some((allocated) => allocated !== first)) {
    const text = `Strict mode: Offset ${offset} block status mismatch!`;
    return { length, difference: { text } };
  }
  if (found.every(({ flags }) => (flags & STATUS_ZERO) !== 0)) return { length };
  const chunk = Math.min(length, CHUNK_LENGTH);
  const contents = await Promise.all(
    images.map(async (image, index) => {
      const buffer = Buffer.alloc(chunk);
      if (((found[index]?.flags ?? 0) & STATUS_ZERO) === 0) await image.read(offset, buffer);
      return buffer;
    }),
  );
  const at = firstDifference(contents);
  if (at === undefined) return { length: chunk };
  const sector = offset + at - ((offset + at) % SECTOR);
  return { length: chunk, difference: { text: `Content mismatch at offset ${sector}!` } };
}

/** Index of the first byte that differs; a single buffer is compared with zeroes. */
function firstDifference([a, b]: readonly Buffer[]): number | undefined {
  if (a === undefined) return undefined;
  if (b === undefined ? isZero(a) : a.equals(b)) return undefined;
  for (let at = 0; at < a.byteLength; at++) if (a[at] !== (b?.[at] ?? 0)) return at;
  return undefined;
}
