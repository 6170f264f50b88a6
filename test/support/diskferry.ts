// SPDX-License-Identifier: MIT
import { fileURLToPath } from 'node:url';
import { type PeerOptions, type PeerResult, spawnTracked, tryPeer } from './peers.js';

const LAUNCHER = fileURLToPath(new URL('../../dist/src/cli/launch.cjs', import.meta.url));

/** Runs the built diskferry command to its end, whatever that is. */
export function diskferry(args: readonly string[], options?: PeerOptions): Promise<PeerResult> {
  return tryPeer(process.execPath, [LAUNCHER, ...args], options);
}

/** Starts the built diskferry command; it dies with the test process at the latest. */
export function startDiskferry(args: readonly string[]) {
  return spawnTracked(process.execPath, [LAUNCHER, ...args]);
}
