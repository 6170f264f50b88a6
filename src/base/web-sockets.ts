// SPDX-License-Identifier: MIT
/** The package of WebSockets, loaded by the first that needs one: it costs a quarter of a program's start. */
import { createRequire } from 'node:module';

type WebSockets = typeof import('ws');

const load = createRequire(import.meta.url);
let loaded: WebSockets | undefined;

/** Its classes and functions; the same in every call. */
export function webSockets(): WebSockets {
  loaded ??= load('ws') as WebSockets;
  return loaded;
}
