// SPDX-License-Identifier: MIT
/** What keeps the machine's state from being counted as the speed of whoever happens to come first. */
import { run } from './processes.js';

/** How much more than what is copied a job's target, sockets and daemons take, as a factor. */
const MEMORY_SHARE = 1.5;
/** What the daemons' buffers take at most, bytes. */
const MEMORY_MIN = 128 << 20;

/** Touches and frees memory, in a process of its own; the argument is the number of MiB. */
const TOUCH = `
const held = [];
for (let left = Number(process.argv[1]); left > 0; left -= 64) held.push(Buffer.alloc(64 << 20, 1));
`;

/**
 * Makes the memory of a job's run ready. A virtual machine gives free memory back to its host after some
 * seconds, and the first touch afterwards costs up to 3 s a GiB: more than the job.
 * @param length what the job copies, bytes; 0: nothing is measured
 */
export async function readyMemory(length: number): Promise<void> {
  if (length === 0) return;
  const mebibytes = Math.ceil(Math.max(MEMORY_MIN, length * MEMORY_SHARE) / (1 << 20));
  await run(process.execPath, ['-e', TOUCH, `${mebibytes}`]);
}

/** The same things, beginning with another one for each turn. @param turn counts from 0 */
export function inTurn<T>(things: readonly T[], turn: number): T[] {
  const first = turn % Math.max(1, things.length);
  return [...things.slice(first), ...things.slice(0, first)];
}
