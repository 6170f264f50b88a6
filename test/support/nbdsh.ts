// SPDX-License-Identifier: MIT
import { runPeer } from './peers.js';

/** What every script may use: JSON output, and the errno of a call that fails. */
const PRELUDE = `
import json, errno, sys
def show(value): print(json.dumps(value))
def failure(call):
    try:
        call()
    except nbd.Error as error:
        return error.errno
    return None
`;

/**
 * Runs a Python script in libnbd's shell. Its variable `h` is a handle that is not connected yet,
 * `uri` the address given here; what it passes to `show` is returned, in order.
 */
export async function nbdsh(uri: string, script: string): Promise<unknown[]> {
  const program = `uri = ${JSON.stringify(uri)}\n${PRELUDE}\n${script}`;
  const { stdout } = await runPeer('nbdsh', ['-c', program]);
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as unknown);
}
