// SPDX-License-Identifier: MIT
/** The children that an image names itself: its backing file and its external data file. */
import path from 'node:path';
import { QCOW2_EXT_DATA_FILE } from '../../../../protocol/qcow2/extensions.js';
import { QCOW2_INCOMPAT_DATA_FILE } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import type { DriverOptions, OpenContext } from '../../block-driver.js';
import { type ImageHead, readHead } from './open.js';

/** Options of the protocol node that a file name means. */
type Resolve = (filename: string) => Promise<DriverOptions>;

/**
 * Options of the children that the image names and the options don't; without a driver where the
 * image does not say which format its backing file has.
 * @throws BlockError DF_INVALID when a name can't be understood
 */
export async function impliedChildren(
  options: DriverOptions,
  context: OpenContext,
  resolve: Resolve,
): Promise<Readonly<Record<string, DriverOptions>>> {
  const file = context.child('file');
  const head = await readHead(file);
  const children: Record<string, DriverOptions> = {};
  const { header, backingName, extensions } = head.content;
  if (backingName !== undefined && backingName !== '' && options.backing === undefined) {
    children.backing = await backingOptions(head, file.node.driver.filename, resolve);
  }
  // The data may be missing where only the image itself is looked at.
  if (context.metadataOnly === true) return children;
  const external = (header.incompatible & QCOW2_INCOMPAT_DATA_FILE) !== 0n;
  const name = extensions.find(({ type }) => type === QCOW2_EXT_DATA_FILE);
  if (external && name !== undefined && options['data-file'] === undefined) {
    children['data-file'] = await resolve(Buffer.from(name.data).toString('utf8'));
  }
  return children;
}

/** @param imageName the image's own file name; relative names start from its folder */
async function backingOptions(
  { content, backingFormat }: ImageHead,
  imageName: string,
  resolve: Resolve,
): Promise<DriverOptions> {
  const name = content.backingName ?? '';
  if (name.startsWith('json:')) return jsonOptions(name.slice('json:'.length));
  const file = await resolve(fullBackingName(name, imageName));
  if (backingFormat !== undefined && backingFormat !== '') return { driver: backingFormat, file };
  return { file };
}

/** The backing file's name as it stands in the image, made absolute where it is relative. */
export function fullBackingName(name: string, imageName: string): string {
  if (hasProtocol(name) || path.isAbsolute(name) || imageName === '') return name;
  return path.join(path.dirname(imageName), name);
}

/** "proto:rest", where no slash comes before the colon. */
function hasProtocol(name: string): boolean {
  const colon = name.indexOf(':');
  return colon > 0 && !name.slice(0, colon).includes('/');
}

/** Options as an object, nested or with dotted keys. */
function jsonOptions(text: string): DriverOptions {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new BlockError('DF_INVALID', 'Could not parse the JSON options', {}, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new BlockError('DF_INVALID', 'Invalid JSON object given');
  }
  const options = nested(value as Record<string, unknown>);
  if (typeof options.driver !== 'string') {
    throw new BlockError('DF_INVALID', "The backing file's JSON options name no driver");
  }
  return options;
}

function nested(flat: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const result = new Map<string, unknown>();
  for (const [key, value] of Object.entries(flat)) {
    const parts = key.split('.');
    let at = result;
    for (const part of parts.slice(0, -1)) {
      const next = at.get(part);
      const inner =
        next instanceof Map ? (next as Map<string, unknown>) : new Map<string, unknown>();
      at.set(part, inner);
      at = inner;
    }
    at.set(parts.at(-1) ?? '', value);
  }
  return plain(result);
}

function plain(map: ReadonlyMap<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    [...map].map(([key, value]) => [
      key,
      value instanceof Map ? plain(value as Map<string, unknown>) : value,
    ]),
  );
}
