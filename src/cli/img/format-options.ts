// SPDX-License-Identifier: MIT
/** `-o key=value,...`: what a new image is to be like, in qemu-img's spelling. */
import { BlockdevCreateOptions } from '../../../protocol/qapi/block-create.js';
import type { Member, StructType } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { type KeyvalTree, parseKeyval } from '../../daemon/keyval.js';
import { parseSize } from './sizes.js';

export interface FormatOptions {
  /** Options of the format as `blockdev-create` knows them, unchecked. */
  readonly own: DriverOptions;
  /** Bytes. */
  readonly size?: number | undefined;
  readonly backingFile?: string | undefined;
  readonly backingFormat?: string | undefined;
  /** A file that is made for the guest's data. */
  readonly dataFile?: string | undefined;
  /** Somebody wants to know what there is. */
  readonly help: boolean;
}

/** Where qemu-img calls a version otherwise than blockdev-create. */
const VERSIONS: ReadonlyMap<string, string> = new Map([
  ['0.10', 'v2'],
  ['v2', 'v2'],
  ['1.1', 'v3'],
  ['v3', 'v3'],
]);

/**
 * @param texts of several `-o`, one after the other
 * @throws BlockError DF_INVALID for what can't be parsed, and for values that there are not
 */
export function parseFormatOptions(texts: readonly string[]): FormatOptions {
  const text = texts.map((each) => each.replaceAll(/(^|,)([a-z0-9_.]+)=/g, dashes)).join(',');
  const { tree, help } = parseKeyval(text);
  const { size, compat, encryption, encrypt, ...others } = tree;
  const { 'backing-file': backingFile, 'backing-fmt': backingFormat, ...more } = others;
  const { 'data-file': dataFile, ...rest } = more;
  const place = ['driver', 'file', 'filename'].find((key) => Object.hasOwn(rest, key));
  if (place !== undefined) throw new BlockError('DF_INVALID', `Parameter '${place}' is unexpected`);
  return {
    own: {
      ...rest,
      ...(compat === undefined ? {} : { version: versionOf(String(compat)) }),
      ...encryptOptions(encrypt, switchOf('encryption', encryption)),
    },
    size: size === undefined ? undefined : parseSize(String(size), 'size'),
    backingFile: textOf(backingFile),
    backingFormat: textOf(backingFormat),
    dataFile: textOf(dataFile),
    help,
  };
}

/**
 * What an option of the command and one of the format mean alike.
 * @throws BlockError DF_INVALID when both are given
 */
export function onlyOne(
  option: string,
  value: string | undefined,
  other: string | undefined,
): string | undefined {
  if (value === undefined || other === undefined) return value ?? other;
  throw new BlockError(
    'DF_INVALID',
    `${option} '${value}' and -o, which says '${other}': only one`,
  );
}

const textOf = (value: unknown): string | undefined =>
  value === undefined ? undefined : String(value);

function versionOf(compat: string): string {
  const version = VERSIONS.get(compat);
  if (version !== undefined) return version;
  throw new BlockError('DF_INVALID', `Invalid value '${compat}' of option 'compat'`);
}

function switchOf(name: string, value: unknown): boolean {
  if (value === undefined || value === 'off') return false;
  if (value === 'on') return true;
  throw new BlockError('DF_INVALID', `Parameter '${name}' expects 'on' or 'off'`);
}

/** The old encryption has two names, and an option of its own. */
function encryptOptions(value: KeyvalTree[string] | undefined, old: boolean): DriverOptions {
  if (value === undefined && !old) return {};
  if (value !== undefined && typeof value !== 'object') return { encrypt: value };
  const { format = old ? 'aes' : undefined, ...rest } = (value ?? {}) as KeyvalTree;
  if (old && format !== 'aes') {
    const message = "Options 'encryption' and 'encrypt.format' are mutually exclusive";
    throw new BlockError('DF_INVALID', message);
  }
  const known = format === 'aes' ? 'qcow' : format;
  return { encrypt: { ...(known === undefined ? {} : { format: known }), ...rest } };
}

const dashes = (_match: string, before: string, key: string): string =>
  `${before}${key.replaceAll('_', '-')}=`;

/** qemu-img's spelling of what blockdev-create calls otherwise, or knows as nodes. */
const HELP_NAMES: Readonly<Record<string, string>> = { version: 'compat' };
const OWN_WORDS: readonly string[] = ['key-secret', 'iter-time'];
const NAME_WIDTH = 24;

/**
 * The options of a format, one a line.
 * @throws BlockError DF_INVALID for a format that makes no images
 */
export function formatOptionsHelp(format: string): string {
  const branches: Readonly<Record<string, StructType>> = BlockdevCreateOptions.branches;
  const branch = Object.hasOwn(branches, format === 'raw' ? 'file' : format)
    ? branches[format === 'raw' ? 'file' : format]
    : undefined;
  if (branch === undefined) {
    throw new BlockError('DF_INVALID', `Unknown file format '${format}'`);
  }
  const lines = membersOf(branch)
    .filter(([name]) => name !== 'file' && name !== 'filename')
    .map(([name, { doc }]) => `  ${helpName(name).padEnd(NAME_WIDTH)} ${doc}\n`);
  return `Supported options:\n${lines.join('')}`;
}

function membersOf(type: StructType): [string, Member][] {
  const base = type.base as StructType | undefined;
  return [...(base === undefined ? [] : membersOf(base)), ...Object.entries(type.members)];
}

function helpName(name: string): string {
  if (name === 'encrypt') return 'encrypt.KEY=VALUE';
  const known = HELP_NAMES[name] ?? name;
  const isOwn = OWN_WORDS.includes(known) || known.endsWith('-alg') || known.endsWith('-mode');
  return `${isOwn ? known : known.replaceAll('-', '_')}=VALUE`;
}
