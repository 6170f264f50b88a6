// SPDX-License-Identifier: MIT
/** `diskferry img convert`: copies an image into another format, or to another place. */
import { BlockError } from '../../base/errors.js';
import { MIB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import { STATUS_ZERO } from '../../block/block-driver.js';
import { COMMON, PROGRESS, parseImgArguments } from './arguments.js';
import { checkBitmaps, checkKeepsBitmaps, copyBitmaps } from './copy-bitmaps.js';
import { type CopyImageOptions, copyImage } from './copy-image.js';
import { concatenated, salvaged } from './copy-source.js';
import {
  type FormatOptions,
  formatOptionsHelp,
  onlyOne,
  parseFormatOptions,
} from './format-options.js';
import { type Backing, backingOf, makeImage } from './new-image.js';
import { withProgress } from './progress.js';
import { type CacheMode, cacheMode, ImageSession } from './session.js';
import { parseSize } from './sizes.js';
import { showSnapshot } from './source-snapshot.js';

const OPTIONS = {
  ...COMMON,
  ...PROGRESS,
  'output-format': { type: 'string', short: 'O' },
  'target-image-opts': { type: 'boolean' },
  'target-is-zero': { type: 'boolean' },
  'no-create': { type: 'boolean', short: 'n' },
  options: { type: 'string', short: 'o', multiple: true },
  'sparse-size': { type: 'string', short: 'S' },
  cache: { type: 'string', short: 't' },
  'source-cache': { type: 'string', short: 'T' },
  'rate-limit': { type: 'string', short: 'r' },
  'num-coroutines': { type: 'string', short: 'm' },
  compressed: { type: 'boolean', short: 'c' },
  'copy-range-offloading': { type: 'boolean', short: 'C' },
  bitmaps: { type: 'boolean' },
  'skip-broken-bitmaps': { type: 'boolean' },
  snapshot: { type: 'string', short: 'l' },
  'backing-file': { type: 'string', short: 'B' },
  'backing-format': { type: 'string', short: 'F' },
  salvage: { type: 'boolean' },
  // Requests go out of order anyway.
  'out-of-order': { type: 'boolean', short: 'W' },
} as const;

export async function convert(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, OPTIONS);
  const names = positionals.slice(0, -1);
  const targetName = positionals.at(-1) ?? '';
  if (names.length === 0) throw wrong('Must specify image file name');
  const sparseLength = parseSparse(values['sparse-size'] ?? '4k');
  const speed = values['rate-limit'] === undefined ? 0 : parseSize(values['rate-limit'], '-r');
  const requestsMax = parseRequests(values['num-coroutines']);
  const cache = cacheMode(values.cache ?? 'unsafe');
  const sourceCache = cacheMode(values['source-cache'] ?? 'writeback');
  const noCreate = values['no-create'] === true || values['target-image-opts'] === true;
  const { 'output-format': format = 'raw' } = values;
  const options = parseFormatOptions(values.options ?? []);
  if (options.help) {
    process.stdout.write(formatOptionsHelp(format));
    return 0;
  }
  const backing = newBacking(values, options);
  checkUse(values, { sources: names.length, noCreate });
  return ImageSession.run(values.object, async (session) => {
    const images = await openSources(session, names, { ...values, sourceCache });
    const whole = concatenated(images);
    const source = values.salvage === true ? salvaged(whole, warn) : whole;
    const { size } = source;
    const compressed = values.compressed === true;
    if (compressed && !noCreate) checkCompresses(session, format, options);
    const driverOptions = noCreate
      ? {}
      : await makeImage(session, { name: targetName, format, size, options, backing });
    const target = await session.open({
      name: targetName,
      writable: true,
      imageOpts: values['target-image-opts'],
      format: values['target-image-opts'] === true ? undefined : format,
      cache,
      driverOptions,
    });
    checkRoom(target, size);
    if (compressed && target.limits.compressedUnit === 0) throw cannotCompress();
    if (values.bitmaps === true) checkKeepsBitmaps(target.root.node);
    // A new LUKS image reads as anything but zeroes.
    const isArbitrary = target.root.node.driver.newIsArbitrary === true;
    const isNewAndZero = !noCreate && !isArbitrary && backing === undefined;
    const below = target.root.node.children.get('backing')?.node.size ?? 0;
    await withProgress('convert', values, (progress) =>
      copyImage({
        ...{ source, target, sparseLength, requestsMax, speed, compressed, progress },
        offload: values['copy-range-offloading'] === true,
        targetIsZero: isNewAndZero || values['target-is-zero'] === true,
        // What the source's top layer does not have, the target's backing file has.
        ...(backing === undefined ? {} : { wants: isAbove(below) }),
      }),
    );
    if (values.bitmaps === true) {
      for (const image of images) {
        await copyBitmaps(session.graph, image.root.node, target.root.node);
      }
    }
    return 0;
  });
}

function newBacking(values: Values, options: FormatOptions): Backing | undefined {
  if (options.size !== undefined) {
    throw wrong("-o size can't be given: the target is as long as the source");
  }
  return backingOf(
    onlyOne('-B', values['backing-file'], options.backingFile),
    onlyOne('-F', values['backing-format'], options.backingFormat),
  );
}

type Values = ReturnType<typeof parseImgArguments<typeof OPTIONS>>['values'];

/** @throws BlockError DF_INVALID for options that do not go together */
function checkUse(
  values: Values,
  { sources, noCreate }: { readonly sources: number; readonly noCreate: boolean },
): void {
  if (values['copy-range-offloading'] === true) checkOffload(values);
  if (values['target-is-zero'] === true && !noCreate) {
    throw wrong('--target-is-zero requires use of -n flag');
  }
  if (values['skip-broken-bitmaps'] === true && values.bitmaps !== true) {
    throw wrong('Use of --skip-broken-bitmaps requires --bitmaps');
  }
  if (sources > 1 && values.bitmaps === true) {
    throw wrong('Copying bitmaps only possible with single source');
  }
  if (sources > 1 && values.snapshot !== undefined) {
    throw wrong('No support for concatenating multiple snapshot');
  }
  if (values['backing-file'] !== undefined && sources > 1) {
    throw wrong(
      'Having a backing file for the target makes no sense when concatenating multiple input images',
    );
  }
  if (values['output-format'] !== undefined && values['target-image-opts'] === true) {
    throw wrong('-O and --target-image-opts, whose driver is the format: only one');
  }
  if (values.options !== undefined && noCreate) {
    throw wrong('-o has no effect when skipping image creation');
  }
  if (values['backing-file'] !== undefined && noCreate) {
    throw wrong('-B is for images that are made: not with -n');
  }
}

/** @throws BlockError in QEMU's words, with what has to see the bytes */
function checkOffload(values: Values): void {
  if (values.compressed === true) throw wrong('Cannot enable copy offloading when -c is used');
  if (values['sparse-size'] !== undefined) {
    throw wrong('Cannot enable copy offloading when -S is used');
  }
  if (values.salvage === true) throw wrong('Cannot use copy offloading in salvaging mode');
}

async function openSources(
  session: ImageSession,
  names: readonly string[],
  values: Values & { readonly sourceCache: CacheMode },
): Promise<BlockBackend[]> {
  const skipBroken = values['skip-broken-bitmaps'] === true;
  const images: BlockBackend[] = [];
  for (const name of names) {
    const image = await session.open({
      name,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
      cache: values.sourceCache,
    });
    if (values.snapshot !== undefined) await showSnapshot(image, values.snapshot);
    if (values.bitmaps === true) checkBitmaps(image.root.node, { skipBroken });
    images.push(image);
  }
  return images;
}

const wrong = (message: string): BlockError => new BlockError('DF_INVALID', message);

const warn = (text: string): unknown => process.stderr.write(`diskferry: warning: ${text}\n`);

/** @param size of the target's backing file, bytes: behind its end it has nothing */
const isAbove =
  (size: number): NonNullable<CopyImageOptions['wants']> =>
  ({ depth, length, flags }, offset) =>
    depth === 1 || (offset + length > size && (flags & STATUS_ZERO) === 0);

function checkRoom(target: BlockBackend, size: number): void {
  if (target.size >= size) return;
  const text = `the target has ${target.size} bytes, ${size} are needed`;
  throw new BlockError('DF_INVALID', `output file is smaller than input file: ${text}`);
}

/** Before anything is made. @throws BlockError in QEMU's words */
function checkCompresses(
  { graph: { drivers } }: ImageSession,
  format: string,
  { own }: FormatOptions,
): void {
  if (drivers.names.includes(format) && drivers.get(format).compresses !== true) {
    throw cannotCompress();
  }
  if ((own.preallocation ?? 'off') !== 'off') throw notBoth('preallocation');
  if (own.encrypt !== undefined) throw notBoth('encryption');
}

const cannotCompress = (): BlockError =>
  new BlockError('DF_NOT_SUPPORTED', 'Compression not supported for this file format');

const notBoth = (what: string): BlockError =>
  new BlockError('DF_NOT_SUPPORTED', `Compression and ${what} not supported at the same time`);

function parseSparse(text: string): number {
  const length = parseSize(text, '-S');
  if (length % 512 === 0 && length <= 16 * MIB) return length;
  throw new BlockError('DF_INVALID', `-S '${text}': a multiple of 512, up to 16M, or 0`);
}

function parseRequests(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (/^\d+$/.test(text) && count >= 1 && count <= 16) return count;
  throw new BlockError('DF_INVALID', `-m '${text}': a number of requests from 1 to 16`);
}
