// SPDX-License-Identifier: MIT
/**
 * Loads a program's bundle with what V8 had compiled of it when it was built: that is a third of the
 * start. CommonJS, for the launchers. The code cache holds the text that it was made of, so one that a
 * later build left behind is not used; V8 itself refuses what another release of it, or one with
 * other flags, has made. Without a cache the program starts as well, only later.
 */
import fs = require('node:fs');
import Module = require('node:module');
import path = require('node:path');
import vm = require('node:vm');

/** In front of a cache: the length of the program's text, 32 bits, little-endian. Then text, then code. */
const PREFIX_LENGTH = 4;

type Wrapped = (
  exports: object,
  require: NodeJS.Require,
  module: { exports: object },
  filename: string,
  dirname: string,
) => void;

interface LoadedProgram {
  /** Whether V8 took the code cache. */
  readonly cached: boolean;
  /** Writes what is compiled by now for the next starts. */
  saveCache(): void;
}

/**
 * Runs the main module of a program.
 * @param filename the bundle: CommonJS, absolute path; its cache lies beside it, `.cache`
 * @throws what the program throws while it is loaded
 */
function loadProgram(filename: string): LoadedProgram {
  const text = fs.readFileSync(filename);
  const cachedData = readCache(cacheName(filename), text);
  const script = new vm.Script(Module.wrap(text.toString()), {
    filename,
    ...(cachedData === undefined ? {} : { cachedData }),
  });
  const program = script.runInThisContext() as Wrapped;
  const module = { exports: {} };
  const { dir } = path.parse(filename);
  program(module.exports, Module.createRequire(filename), module, filename, dir);
  return {
    cached: cachedData !== undefined && script.cachedDataRejected === false,
    saveCache: () => {
      const prefix = Buffer.alloc(PREFIX_LENGTH);
      prefix.writeUInt32LE(text.byteLength);
      const whole = Buffer.concat([prefix, text, script.createCachedData()]);
      // By another name first: a program that starts just now sees the old one or the new one.
      const unfinished = `${cacheName(filename)}.${process.pid}`;
      fs.writeFileSync(unfinished, whole);
      fs.renameSync(unfinished, cacheName(filename));
    },
  };
}

const cacheName = (filename: string): string => `${filename}.cache`;

/** @returns undefined where there is none, or one of another text */
function readCache(filename: string, text: Buffer): Buffer | undefined {
  let whole: Buffer;
  try {
    whole = fs.readFileSync(filename);
  } catch {
    return undefined;
  }
  const start = PREFIX_LENGTH + text.byteLength;
  const isOfText =
    whole.byteLength > start &&
    whole.readUInt32LE(0) === text.byteLength &&
    whole.subarray(PREFIX_LENGTH, start).equals(text);
  return isOfText ? whole.subarray(start) : undefined;
}

export = { loadProgram };
