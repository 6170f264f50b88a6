// SPDX-License-Identifier: MIT
/** Options of a command line whose form the schema says. */
import type { Infer } from '../../protocol/qapi/define.js';
import type { AnyType, JsonValue } from '../../protocol/qapi/types.js';
import { validate } from '../../protocol/qapi/validate.js';
import { BlockError } from '../base/errors.js';
import { parseJson } from '../qmp/json-stream.js';
import { parseKeyval } from './keyval.js';

/**
 * The text as the schema wants it: JSON when it starts with `{`, otherwise `key=value,...`, the first
 * of which may leave out its key where one is implied.
 * @throws BlockError, QapiInputError naming what is wrong
 */
export function parseOption<const T extends AnyType>(
  type: T,
  text: string,
  impliedKey?: string,
): Infer<T> {
  if (text.startsWith('{')) return validate(type, parseJson(text));
  const { tree, help } = parseKeyval(text, impliedKey !== undefined ? { impliedKey } : {});
  if (help) throw new BlockError('DF_INVALID', 'Help is not available for this option');
  return validate(type, tree as JsonValue, { keyval: true });
}
