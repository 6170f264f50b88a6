// SPDX-License-Identifier: MIT
/**
 * What both commands do before their program is loaded. CommonJS, because the size of libuv's thread
 * pool is read when the pool is first used, and loading an ES module uses it: the variable has to be
 * set before anything is imported.
 */
import path = require('node:path');
import v8 = require('node:v8');
import load = require('./load-program.cjs');

/** Threads for reads that miss the page cache, fsync and the like; libuv's own default is 4. */
const POOL_THREADS = '16';

/**
 * Starts a program in this process.
 * @param name of its bundle, which the build makes of main.ts: one file loads in a fraction of the
 *   time of hundreds
 */
function startProgram(name: string): ReturnType<typeof load.loadProgram> | undefined {
  // Left alone, Node would open its debugger to everybody on this machine. A listener prevents that.
  process.on('SIGUSR1', () => undefined);
  process.env.UV_THREADPOOL_SIZE ??= POOL_THREADS;
  // V8 makes optimised code of whatever runs for a tenth of a second, which costs as much CPU as
  // copying half a gigabyte, and what lasts so short never gets it back. With this it waits some
  // three times longer. The name of the flag and its unit are those of the V8 in Node 20.
  if (process.versions.node.startsWith('20.')) {
    v8.setFlagsFromString('--interrupt-budget=400000');
  }
  try {
    return load.loadProgram(path.join(__dirname, '../../bin', `${name}.cjs`));
  } catch (error) {
    process.stderr.write(`${name}: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exitCode = 1;
    return undefined;
  }
}

export = { startProgram };
