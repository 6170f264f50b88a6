#!/usr/bin/env node
// SPDX-License-Identifier: MIT
/**
 * Starts diskferryd. CommonJS, because the size of libuv's thread pool is read when the pool is first
 * used, and loading an ES module uses it: the variable has to be set before anything is imported.
 */

/** Threads for reads that miss the page cache, fsync and the like; libuv's own default is 4. */
process.env.UV_THREADPOOL_SIZE ??= '16';

/** The bundle that the build makes of main.ts: one file loads in a fraction of the time of hundreds. */
const program: string = '../../bin/diskferryd.js';

import(program).catch((error: unknown) => {
  process.stderr.write(`diskferryd: ${error instanceof Error ? error.stack : String(error)}\n`);
  process.exitCode = 1;
});
