// SPDX-License-Identifier: MIT
/** Images that are described by options (`--image-opts`, `json:`) instead of a file name. */
import { BlockdevOptions } from '../../../protocol/qapi/block-core-options.js';
import type { JsonObject, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { parseKeyval } from '../../daemon/keyval.js';
import { parseJson } from '../../qmp/json-stream.js';

/**
 * Options of a node, as JSON or as `key=value,...`. As with qemu-img, and unlike in QMP, `encrypt` may
 * leave out the format (the image says what it is), and a node below that has a file name its driver.
 * @param protocolOf what a file name means, as options of a node
 * @throws BlockError, QapiInputError naming what is wrong
 */
export async function parseImageOptions(
  text: string,
  protocolOf: (filename: string) => Promise<DriverOptions>,
): Promise<DriverOptions> {
  const bare: string[][] = [];
  const isJson = text.startsWith('{');
  const { tree, help } = isJson ? { tree: parseJson(text), help: false } : parseKeyval(text);
  if (help) throw new BlockError('DF_INVALID', 'Help is not available for this option');
  const named = await withProtocols(tree as JsonValue, protocolOf, { isTop: true });
  const options = filled(named, [], bare);
  return withoutFormats(validate(BlockdevOptions, options, { keyval: !isJson }), bare);
}

/** Nodes below the top one that have a file name and no driver get the one that the name means. */
async function withProtocols(
  value: JsonValue,
  protocolOf: (filename: string) => Promise<DriverOptions>,
  { isTop }: { readonly isTop: boolean },
): Promise<JsonValue> {
  if (!isObject(value)) return value;
  const members: Record<string, JsonValue> = {};
  for (const [key, member] of Object.entries(value)) {
    members[key] = await withProtocols(member, protocolOf, { isTop: false });
  }
  const { driver, filename } = value;
  if (isTop || driver !== undefined || typeof filename !== 'string') return members;
  return { ...members, ...((await protocolOf(filename)) as JsonObject) };
}

/** Gives each `encrypt` without a format one, which the schema wants; `bare` gets their places. */
function filled(value: JsonValue, path: readonly string[], bare: string[][]): JsonValue {
  if (!isObject(value)) return value;
  const members = Object.entries(value).map(([key, member]): [string, JsonValue] => {
    const here = [...path, key];
    if (key !== 'encrypt' || !isObject(member) || member.format !== undefined) {
      return [key, filled(member, here, bare)];
    }
    bare.push(here);
    return [key, { ...member, format: 'luks' }];
  });
  return Object.fromEntries(members);
}

function withoutFormats(options: DriverOptions, places: readonly string[][]): DriverOptions {
  return places.reduce((rest, place) => withoutFormat(rest, place), options);
}

function withoutFormat(options: DriverOptions, [key = '', ...below]: string[]): DriverOptions {
  const member = options[key] as DriverOptions;
  if (below.length > 0) return { ...options, [key]: withoutFormat(member, below) };
  const { format: _filled, ...given } = member;
  return { ...options, [key]: given };
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
