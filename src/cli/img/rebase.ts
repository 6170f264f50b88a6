// SPDX-License-Identifier: MIT
/** `diskferry img rebase`: another backing file for an image, whose content stays. */
import { BlockError, toError } from '../../base/errors.js';
import { MIB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import { type Extent, STATUS_ZERO } from '../../block/block-driver.js';
import { chainStatus } from '../../block/block-status.js';
import { findBackingByFilename, skipFilters } from '../../block/chain.js';
import type { BlockNode } from '../../block/node.js';
import { isZero } from '../../block/shaped-requests.js';
import { COMMON, PROGRESS, parseImgArguments, wordsFor } from './arguments.js';
import { type Backing, backingRequest } from './new-image.js';
import { withProgress } from './progress.js';
import { cacheMode, type ImageRequest, ImageSession } from './session.js';

/** Compared at a time, bytes, by each of so many. */
const CHUNK_LENGTH = MIB;
const WORKERS = 8;
/** What differs is written in multiples of this, bytes. */
const UNIT = 4096;

export async function rebase(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...PROGRESS,
    'backing-file': { type: 'string', short: 'b' },
    'backing-format': { type: 'string', short: 'F' },
    unsafe: { type: 'boolean', short: 'u' },
    cache: { type: 'string', short: 't' },
    'source-cache': { type: 'string', short: 'T' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const { 'backing-file': file, 'backing-format': format, unsafe = false } = values;
  if (file === undefined && !unsafe) {
    throw wrong('Must specify backing file (-b) or use simple mode (-u)');
  }
  const backing = newBacking(file, format);
  const { format: own, 'image-opts': imageOpts, 'force-share': forceShare } = values;
  const cache = cacheMode(values.cache ?? 'writeback');
  const image = { name, format: own, imageOpts, writable: true, noBacking: unsafe, cache };
  const below = { forceShare, cache: cacheMode(values['source-cache'] ?? 'writeback') };
  await ImageSession.run(values.object, async (session) => {
    await rebaseImage(session, { image, backing, ...(unsafe ? {} : { below }), shown: values });
  });
  return 0;
}

interface RebaseRequest {
  readonly image: ImageRequest;
  readonly backing: Backing | undefined;
  /** How the new backing file is opened, to copy what differs; absent: only its name is changed. */
  readonly below?: Omit<ImageRequest, 'name'>;
  readonly shown: Parameters<typeof withProgress>[1];
}

async function rebaseImage(
  session: ImageSession,
  { image: request, backing, below: how, shown }: RebaseRequest,
): Promise<void> {
  if (backing !== undefined && !session.graph.drivers.names.includes(backing.format)) {
    throw wrong(`Invalid format name: '${backing.format}'`);
  }
  const image = await session.open(request);
  const { driver } = skipFilters(image.root.node);
  if (driver.changeBackingFile === undefined) {
    throw wrong(`The format '${driver.name}' has no backing files`);
  }
  if (how !== undefined) {
    const below = await openBelow(session, image, { backing, ...how });
    await withProgress('rebase', shown, (show) => copyDifferences(image, below, show));
    await image.flush();
  }
  await driver.changeBackingFile(
    backing === undefined ? undefined : { filename: backing.file, format: backing.format },
  );
}

/** Undefined: none. Guessing the format of a backing file would let its content choose it. */
function newBacking(file: string | undefined, format: string | undefined): Backing | undefined {
  if (file === undefined || file === '') return undefined;
  if (format !== undefined) return { file, format };
  throw wrong(`Could not change the backing file to '${file}': backing format must be specified`);
}

/** The new backing file as it will be read. */
interface Below {
  /** Undefined: there is none, all reads as zeroes. */
  readonly image: BlockBackend | undefined;
  /** It is in the image's chain now: what it and those below it have stays visible. */
  readonly inChain: BlockNode | undefined;
}

async function openBelow(
  session: ImageSession,
  image: BlockBackend,
  { backing, ...how }: { readonly backing: Backing | undefined } & Omit<ImageRequest, 'name'>,
): Promise<Below> {
  if (backing === undefined) return { image: undefined, inChain: undefined };
  const { node } = image.root;
  const request = backingRequest(node.driver.filename, backing);
  const inChain = await findBackingByFilename(node, request.name);
  try {
    return { image: await session.open({ ...how, ...request }), inChain };
  } catch (error) {
    throw new BlockError(
      'DF_INVALID',
      `Could not open new backing file '${backing.file}'`,
      {},
      { cause: toError(error) },
    );
  }
}

/** Where the image has nothing itself, it gets what the new backing file does not have as the old one. */
async function copyDifferences(
  image: BlockBackend,
  below: Below,
  progress: (done: number, total: number) => void,
): Promise<void> {
  const { size } = image;
  let next = 0;
  let done = 0;
  const failures: unknown[] = [];
  const work = async (): Promise<void> => {
    const [old, now] = [Buffer.alloc(CHUNK_LENGTH), Buffer.alloc(CHUNK_LENGTH)];
    while (next < size && failures.length === 0) {
      const offset = next;
      const length = Math.min(CHUNK_LENGTH, size - offset);
      next += length;
      await rebaseChunk(image, below, { offset, old: old.subarray(0, length), now });
      done += length;
      progress(done, size);
    }
  };
  const workers = Array.from({ length: WORKERS }, () =>
    work().catch((error: unknown) => failures.push(error)),
  );
  await Promise.all(workers);
  if (failures.length > 0) throw failures[0];
}

interface Chunk {
  readonly offset: number;
  /** As long as the chunk. */
  readonly old: Buffer;
  /** At least as long. */
  readonly now: Buffer;
}

async function rebaseChunk(
  image: BlockBackend,
  below: Below,
  { offset, old, now }: Chunk,
): Promise<void> {
  const end = offset + old.byteLength;
  for (let at = offset; at < end; ) {
    const { length, same } = await extentAt(image, below, at, end - at);
    if (!same) {
      const [before, after] = [old.subarray(0, length), now.subarray(0, length)];
      await image.read(at, before);
      await readBelow(below.image, at, after);
      for (const [from, to] of differences(at, before, after)) {
        const part = before.subarray(from, to);
        if (isZero(part)) await image.writeZeroes(at + from, part.byteLength);
        else await image.write(at + from, part);
      }
    }
    at += length;
  }
}

/** @returns same: the range need not be looked at */
async function extentAt(
  image: BlockBackend,
  { image: below, inChain }: Below,
  offset: number,
  most: number,
): Promise<{ readonly length: number; readonly same: boolean }> {
  const { node } = image.root;
  const now = await chainStatus(node, offset, most, inChain);
  if (now.depth === 1 || (inChain !== undefined && now.depth === 0)) {
    return { length: now.length, same: true };
  }
  if ((now.flags & STATUS_ZERO) === 0) return { length: now.length, same: false };
  const { length, flags } = await statusBelow(below, offset, now.length);
  return { length, same: (flags & STATUS_ZERO) !== 0 };
}

/** What lies past the end of a shorter backing file is zero. */
function statusBelow(
  below: BlockBackend | undefined,
  offset: number,
  length: number,
): Pick<Extent, 'length' | 'flags'> | Promise<Pick<Extent, 'length' | 'flags'>> {
  if (below === undefined || offset >= below.size) return { length, flags: STATUS_ZERO };
  return below.blockStatus(offset, Math.min(length, below.size - offset));
}

async function readBelow(
  below: BlockBackend | undefined,
  offset: number,
  buffer: Buffer,
): Promise<void> {
  const there = Math.min(Math.max((below?.size ?? 0) - offset, 0), buffer.byteLength);
  if (there > 0) await below?.read(offset, buffer.subarray(0, there));
  buffer.fill(0, there);
}

/** Runs of units that differ, as indices: [from, to). */
function* differences(
  offset: number,
  a: Buffer,
  b: Buffer,
): Generator<readonly [from: number, to: number]> {
  if (a.equals(b)) return;
  let start: number | undefined;
  for (let at = 0; at < a.byteLength; ) {
    const to = Math.min(at + UNIT - ((offset + at) % UNIT), a.byteLength);
    const same = a.subarray(at, to).equals(b.subarray(at, to));
    if (!same) start ??= at;
    else if (start !== undefined) {
      yield [start, at];
      start = undefined;
    }
    at = to;
  }
  if (start !== undefined) yield [start, a.byteLength];
}

const wrong = (message: string): BlockError => new BlockError('DF_INVALID', message);
