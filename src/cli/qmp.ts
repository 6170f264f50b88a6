// SPDX-License-Identifier: MIT
/** `diskferry qmp`: one command, its result as JSON. */
import type { JsonValue } from '../../protocol/qapi/types.js';
import { errorText } from '../base/error-text.js';
import { BlockError, toError } from '../base/errors.js';
import { type QmpAddress, QmpClient } from '../qmp/client.js';
import { parseJson } from '../qmp/json-stream.js';
import { writeJson } from '../qmp/json-writer.js';

/** @param words monitor, command, then key=value pairs */
export async function qmp(words: readonly string[]): Promise<number> {
  const [monitor, command, ...pairs] = words;
  if (monitor === undefined || command === undefined) {
    throw new Error('usage: diskferry qmp MONITOR COMMAND [KEY=VALUE...]');
  }
  const args = parsePairs(pairs);
  const client = await connectMonitor(monitor);
  try {
    const result = await client.execute(command, args);
    process.stdout.write(`${writeJson(result, { pretty: true })}\n`);
    return 0;
  } finally {
    client.close();
  }
}

/** @throws Error that names the monitor and says what to look at; also when the signal gives it up */
export async function connectMonitor(text: string, signal?: AbortSignal): Promise<QmpClient> {
  const address = parseMonitor(text);
  try {
    return await QmpClient.connect(address, signal);
  } catch (error) {
    let reason: unknown = error;
    while (reason instanceof Error && reason.cause instanceof Error) reason = reason.cause;
    const why = errorText(toError(reason));
    if (reason instanceof BlockError && reason.code === 'DF_TIMEOUT') {
      throw new Error(
        `the monitor at '${text}' does not answer. A monitor serves one client at a time: ` +
          'another one may be using it',
      );
    }
    throw new Error(`no QMP monitor at '${text}': ${why}. Is the daemon running, with --monitor?`);
  }
}

/** A path, or HOST:PORT. @throws Error naming what is wrong */
export function parseMonitor(text: string): QmpAddress {
  const tcp = /^\[?([^/]*?)\]?:(\d{1,5})$/.exec(text);
  if (tcp?.[1] === undefined || tcp[2] === undefined) return { path: text };
  const port = Number(tcp[2]);
  if (port < 1 || port > 65535) throw new Error(`'${text}': a port is 1 to 65535`);
  return { host: tcp[1] === '' ? '127.0.0.1' : tcp[1], port };
}

/** Arguments of a command. @throws Error naming the pair that is wrong */
export function parsePairs(pairs: readonly string[]): { readonly [name: string]: JsonValue } {
  const values = new Map<string, JsonValue>();
  for (const pair of pairs) {
    const at = pair.indexOf('=');
    if (at < 1) throw new Error(`'${pair}' is not KEY=VALUE`);
    const key = pair.slice(0, at);
    if (values.has(key)) throw new Error(`'${key}' is given twice`);
    values.set(key, parseValue(key, pair.slice(at + 1)));
  }
  return Object.fromEntries(values);
}

function parseValue(key: string, text: string): JsonValue {
  if (!looksLikeJson(text)) return text;
  try {
    return parseJson(text);
  } catch (error) {
    throw new Error(`${key}: '${text}' begins like JSON but is none`, { cause: error });
  }
}

const looksLikeJson = (text: string): boolean =>
  /^(-?(0|[1-9]\d*)(\.\d+)?|true|false|null|[[{"].*)$/s.test(text);
