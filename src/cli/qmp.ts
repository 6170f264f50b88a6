// SPDX-License-Identifier: MIT
/** `diskferry qmp`: one command, its result as JSON. */
import type { JsonValue } from '../../protocol/qapi/types.js';
import { type QmpAddress, QmpClient } from '../qmp/client.js';
import { parseJson } from '../qmp/json-stream.js';
import { writeJson } from '../qmp/json-writer.js';

/** @param words monitor, command, then key=value pairs */
export async function qmp(words: readonly string[]): Promise<number> {
  const [monitor, command, ...pairs] = words;
  if (monitor === undefined || command === undefined) {
    throw new Error('usage: diskferry qmp MONITOR COMMAND [KEY=VALUE...]');
  }
  const client = await QmpClient.connect(parseMonitor(monitor));
  try {
    const result = await client.execute(command, Object.fromEntries(pairs.map(parsePair)));
    process.stdout.write(`${writeJson(result, { pretty: true })}\n`);
    return 0;
  } finally {
    client.close();
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

function parsePair(pair: string): [string, JsonValue] {
  const at = pair.indexOf('=');
  if (at < 1) throw new Error(`'${pair}' is not KEY=VALUE`);
  const text = pair.slice(at + 1);
  return [pair.slice(0, at), looksLikeJson(text) ? parseJson(text) : text];
}

const looksLikeJson = (text: string): boolean =>
  /^(-?\d+(\.\d+)?|true|false|null|[[{].*)$/s.test(text);
