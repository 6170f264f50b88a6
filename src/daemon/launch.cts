#!/usr/bin/env node
// SPDX-License-Identifier: MIT
/**
 * Starts diskferryd. CommonJS, because the size of libuv's thread pool is read when the pool is first
 * used, and loading an ES module uses it: the variable has to be set before anything is imported.
 */
import v8 = require('node:v8');

/** Threads for reads that miss the page cache, fsync and the like; libuv's own default is 4. */
process.env.UV_THREADPOOL_SIZE ??= '16';

/**
 * V8 makes optimised code of whatever runs for a tenth of a second, which costs as much CPU as copying
 * half a gigabyte, and what lasts so short never gets it back. With this it waits some ten times longer.
 * The name of the flag and its unit are those of the V8 in Node 20.
 */
if (process.versions.node.startsWith('20.')) v8.setFlagsFromString('--interrupt-budget=1000000');

/** The bundle that the build makes of main.ts: one file loads in a fraction of the time of hundreds. */
const program: string = '../../bin/diskferryd.js';

import(program).catch((error: unknown) => {
  process.stderr.write(`diskferryd: ${error instanceof Error ? error.stack : String(error)}\n`);
  process.exitCode = 1;
});
