// SPDX-License-Identifier: MIT
/** Images that a command makes: `create`, and the targets of `convert` and `dd`. */
import * as fs from 'node:fs';
import { resolve } from 'node:path';
import { BlockdevCreateOptions } from '../../../protocol/qapi/block-create.js';
import type { JsonObject, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { alignUp } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import type { DriverOptions, RemoveImage } from '../../block/block-driver.js';
import { createImage } from '../../block/create-image.js';
import { filenameOptions } from '../../block/image-filename.js';
import { fsCall } from '../../sys/pool.js';
import type { FormatOptions } from './format-options.js';
import type { ImageSession } from './session.js';

/** Sizes of disks are counted in these, bytes. */
const SECTOR = 512;

export interface NewImage {
  readonly name: string;
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  /** What `-o` says; its backing file and size count for nothing here. */
  readonly options: FormatOptions;
  readonly backing?: Backing | undefined;
}

export interface Backing {
  readonly file: string;
  readonly format: string;
}

/**
 * What `-b` and `-F` say. Guessing the format of a backing file would let its content choose it.
 * @throws BlockError DF_INVALID for one without the other
 */
export function backingOf(
  file: string | undefined,
  format: string | undefined,
): Backing | undefined {
  if (file === undefined) {
    if (format === undefined) return undefined;
    throw new BlockError('DF_INVALID', '-F needs -b');
  }
  if (format !== undefined) return { file, format };
  throw new BlockError('DF_INVALID', 'Backing file specified without backing format: give -F');
}

/** A relative name is meant from where the image is. */
export function backingRequest(
  name: string,
  { file, format }: Backing,
): { name: string; format: string } {
  const relative = !file.startsWith('/') && !/^[^/]*:/.test(file);
  const folder = relative ? name.slice(0, name.lastIndexOf('/') + 1) : '';
  return { name: `${folder}${file}`, format };
}

/**
 * Makes the image, and its data file where it is to have one. What it does not know of the options it
 * refuses before anything is made; a file that it has made is gone when it fails later.
 * @returns options that its node needs besides: its key
 * @throws BlockError, QapiInputError
 */
export async function makeImage(session: ImageSession, image: NewImage): Promise<DriverOptions> {
  const { drivers } = session.graph;
  const { format, options, backing } = image;
  const protocol = await creatable(session, image.name);
  const { own } = options;
  if (format === 'raw') {
    const what = backing !== undefined ? 'Backing file' : 'External data file';
    if (backing !== undefined || options.dataFile !== undefined) {
      throw new BlockError('DF_NOT_SUPPORTED', `${what} not supported for file format 'raw'`);
    }
    await making(session, image, [checked({ ...own, ...protocol, size: image.size })]);
    return {};
  }
  if (!drivers.names.includes(format)) throw wrong(`Unknown file format '${format}'`);
  // A file may end within a sector, a disk does not.
  const size = alignUp(image.size, SECTOR);
  const { dataFile } = options;
  const data = dataFile === undefined ? undefined : await creatable(session, dataFile);
  const all = checked({
    ...{ ...own, driver: format, file: protocol as unknown as JsonValue, size },
    ...(data === undefined ? {} : { 'data-file': data as unknown as JsonValue }),
    ...(backing !== undefined
      ? { 'backing-file': backing.file, 'backing-fmt': backing.format }
      : {}),
  });
  await drivers.get(format).create?.check?.(all);
  await checkPlaces(session, image, { protocol, data });
  const files = [protocol, ...(data === undefined ? [] : [data])];
  await making(session, image, [...files.map((each) => checked({ ...each, size: 0 })), all]);
  return keyOptions(own);
}

/** The protocol node of a name at which something can be made. */
async function creatable({ graph: { drivers } }: ImageSession, name: string) {
  const { driver, filename } = await filenameOptions(drivers, name);
  if (drivers.get(String(driver)).create !== undefined) return { driver, filename };
  throw new BlockError(
    'DF_NOT_SUPPORTED',
    `Protocol driver '${String(driver)}' does not support image creation`,
  );
}

/** An image would be emptied to be its own backing or data file. */
async function checkPlaces(
  session: ImageSession,
  { name, backing }: NewImage,
  { protocol, data }: Record<'protocol' | 'data', DriverOptions | undefined>,
): Promise<void> {
  const own = await identity(protocol);
  if (backing !== undefined) {
    const below = backingRequest(name, backing).name;
    const same = below.startsWith('json:')
      ? undefined
      : await identity(await filenameOptions(session.graph.drivers, below));
    if (own === same) {
      throw wrong('Error: Trying to create an image with the same filename as the backing file');
    }
  }
  if (data !== undefined && own === (await identity(data))) {
    throw wrong('Trying to create an image with the same filename as its data file');
  }
}

/** Equal for names of one file, whether it is there or not. */
async function identity(options: DriverOptions | undefined): Promise<string> {
  const name = String(options?.filename);
  const found = await fsCall<fs.Stats>((done) => fs.stat(name, done)).catch(() => undefined);
  return found === undefined ? resolve(name) : `${found.dev}:${found.ino}`;
}

/** Makes one thing after the other; files that were not there before are removed when a later one fails. */
async function making(
  { graph }: ImageSession,
  { name }: NewImage,
  all: readonly DriverOptions[],
): Promise<void> {
  const { signal } = new AbortController();
  const made: RemoveImage[] = [];
  try {
    for (const options of all) {
      const remove = await createImage(graph, options, signal);
      if (remove !== undefined) made.push(remove);
    }
  } catch (error) {
    for (const remove of made) await remove();
    const code = error instanceof BlockError ? error.code : 'DF_IO';
    throw new BlockError(code, name, {}, { cause: error });
  }
}

const wrong = (message: string): BlockError => new BlockError('DF_INVALID', message);

function keyOptions(own: DriverOptions): DriverOptions {
  const keys: Record<string, unknown> = {};
  const encrypt = own.encrypt as JsonObject | undefined;
  if (own['key-secret'] !== undefined) keys['key-secret'] = own['key-secret'];
  if (encrypt !== undefined) keys.encrypt = { 'key-secret': encrypt['key-secret'] };
  return keys;
}

/**
 * The options of a new image as `blockdev-create` knows them.
 * @param place the members that tell where it goes
 * @throws BlockError, QapiInputError for one that there is not, or a value that can't be
 */
export function newImageOptions({
  driver,
  size,
  options,
  place,
}: Pick<NewImage, 'size' | 'options'> & {
  readonly driver: string;
  readonly place: DriverOptions;
}): DriverOptions {
  const { own, ...names } = options;
  return checked({
    ...{ ...own, driver, size, ...place },
    ...(names.dataFile === undefined ? {} : { 'data-file': '' }),
    ...(names.backingFile === undefined ? {} : { 'backing-file': names.backingFile }),
    ...(names.backingFormat === undefined ? {} : { 'backing-fmt': names.backingFormat }),
  });
}

function checked(options: DriverOptions): DriverOptions {
  return validate(BlockdevCreateOptions, options as unknown as JsonObject, { keyval: true });
}
