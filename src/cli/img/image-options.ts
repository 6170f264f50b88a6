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
 * leave out the format: the image says what it is.
 * @throws BlockError, QapiInputError naming what is wrong
 */
export function parseImageOptions(text: string): DriverOptions {
  const bare: string[][] = [];
  if (text.startsWith('{')) {
    return withoutFormats(validate(BlockdevOptions, filled(parseJson(text), [], bare)), bare);
  }
  const { tree, help } = parseKeyval(text);
  if (help) throw new BlockError('DF_INVALID', 'Help is not available for this option');
  const options = filled(tree as JsonValue, [], bare);
  return withoutFormats(validate(BlockdevOptions, options, { keyval: true }), bare);
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
