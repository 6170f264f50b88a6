// SPDX-License-Identifier: MIT
/** Images that a command makes: `create`, and the targets of `convert` and `dd`. */
import { BlockdevCreateOptions } from '../../../protocol/qapi/block-create.js';
import type { JsonObject, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { createImage } from '../../block/create-image.js';
import { filenameOptions } from '../../block/image-filename.js';
import { parseKeyval } from '../../daemon/keyval.js';
import type { ImageSession } from './session.js';

export interface NewImage {
  readonly name: string;
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  /** Options of the format as text: `-o key=value,...`, several of them one after the other. */
  readonly options: readonly string[];
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

/** Where qemu-img calls an option otherwise than blockdev-create. */
const OTHER_VALUES: Readonly<Record<string, Readonly<Record<string, readonly [string, string]>>>> =
  {
    compat: {
      '0.10': ['version', 'v2'],
      v2: ['version', 'v2'],
      '1.1': ['version', 'v3'],
      v3: ['version', 'v3'],
    },
  };

/**
 * Makes the image. What it does not know of the options it refuses before anything is made.
 * @returns options that its node needs besides: its key
 * @throws BlockError, QapiInputError
 */
export async function makeImage(session: ImageSession, image: NewImage): Promise<DriverOptions> {
  const { graph } = session;
  const { signal } = new AbortController();
  const protocol = await filenameOptions(graph.drivers, image.name);
  if (graph.drivers.get(String(protocol.driver)).create === undefined) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      `Protocol driver '${String(protocol.driver)}' does not support image creation`,
    );
  }
  const own = ownOptions(image);
  if (image.format === 'raw') {
    if (image.backing !== undefined) {
      throw new BlockError('DF_NOT_SUPPORTED', "Backing file not supported for file format 'raw'");
    }
    const file = { driver: protocol.driver, filename: protocol.filename, size: image.size, ...own };
    await createImage(graph, checked(file), signal);
    return {};
  }
  if (!graph.drivers.names.includes(image.format)) {
    throw new BlockError('DF_INVALID', `Unknown file format '${image.format}'`);
  }
  const { backing } = image;
  const options = checked({
    driver: image.format,
    file: { driver: protocol.driver, filename: protocol.filename } as JsonValue,
    size: image.size,
    ...own,
    ...(backing !== undefined
      ? { 'backing-file': backing.file, 'backing-fmt': backing.format }
      : {}),
  });
  const { driver, filename } = protocol;
  await createImage(graph, checked({ driver, filename, size: 0 }), signal);
  await createImage(graph, options, signal);
  return keyOptions(own);
}

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
  return checked({ driver, size, ...place, ...ownOptions({ options }) });
}

function checked(options: DriverOptions): DriverOptions {
  return validate(BlockdevCreateOptions, options as unknown as JsonObject, { keyval: true });
}

/** Spelling and values of qemu-img turned into those of blockdev-create. */
function ownOptions({ options }: Pick<NewImage, 'options'>): DriverOptions {
  const own: Record<string, unknown> = {};
  const text = options.map((each) => each.replaceAll(/(^|,)([a-z0-9_.]+)=/g, dashes));
  const { tree } = parseKeyval(text.join(','));
  for (const [key, value] of Object.entries(tree)) {
    const known = OTHER_VALUES[key];
    if (known === undefined) {
      own[key] = key === 'encrypt' ? encryptOptions(value) : value;
      continue;
    }
    const other = Object.hasOwn(known, String(value)) ? known[String(value)] : undefined;
    if (other === undefined) {
      throw new BlockError('DF_INVALID', `Invalid value '${String(value)}' of option '${key}'`);
    }
    own[other[0]] = other[1];
  }
  return own;
}

/** The old encryption has two names. */
function encryptOptions(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  const { format } = value as { readonly format?: unknown };
  return { ...value, ...(format === 'aes' ? { format: 'qcow' } : {}) };
}

const dashes = (_match: string, before: string, key: string): string =>
  `${before}${key.replaceAll('_', '-')}=`;
