// SPDX-License-Identifier: MIT
/**
 * Compression by zstd: of Node where it has it (22.15 and later), else of the system's libzstd, which is
 * loaded when it is first asked for. The work is done in the thread pool.
 */
import * as zlib from 'node:zlib';
import koffi from 'koffi';
import { errnoName } from '../base/errors.js';
import { type NativeCall, startInPool } from './linux.js';

export interface Zstd {
  /** @returns length of the one frame in `target`, bytes; undefined: it has no room there */
  compress(source: Buffer, target: Buffer): Promise<number | undefined>;
  /**
   * Decompresses frames until they have filled `target`; what follows them is left alone.
   * @throws Error when they give other than that, or are no frames
   */
  decompress(source: Buffer, target: Buffer): Promise<void>;
}

/** The file name under which dlopen(3) finds the library. */
const LIBRARY = 'libzstd.so.1';
/** Level of compression: the library's default. */
const LEVEL = 3;
/** Frames that one piece of data may consist of. Writers make one. */
const FRAMES_MAX = 64;
/** Room behind the result, so that Node need not ask again whether there is more. */
const SPARE = 64;

let loaded: Zstd | undefined;

/** @throws Error that says what is missing, when neither Node nor the system has zstd */
export function loadZstd(): Zstd {
  loaded ??= zstdOfNode(zlib) ?? zstdOfLibrary(LIBRARY);
  return loaded;
}

type Done = (error: Error | null, result: Buffer) => void;
type NodeCall = (source: Buffer, options: object, done: Done) => void;

/** What of node:zlib is not in all releases. */
interface NodeZstd {
  readonly zstdCompress?: NodeCall;
  readonly zstdDecompress?: NodeCall;
}

/** Undefined: this release of Node has none. @param module node:zlib */
export function zstdOfNode(module: object): Zstd | undefined {
  const { zstdCompress, zstdDecompress } = module as NodeZstd;
  if (zstdCompress === undefined || zstdDecompress === undefined) return undefined;
  const call = (work: NodeCall, source: Buffer, { byteLength: length }: Buffer): Promise<Buffer> =>
    new Promise((resolve, reject) => {
      work(source, { maxOutputLength: length, chunkSize: length + SPARE }, (error, result) => {
        if (error === null) resolve(result);
        else reject(error);
      });
    });
  return {
    async compress(source, target) {
      try {
        return (await call(zstdCompress, source, target)).copy(target);
      } catch (error) {
        if (errnoName(error) === 'ERR_BUFFER_TOO_LARGE') return undefined;
        throw error;
      }
    },
    async decompress(source, target) {
      const result = await call(zstdDecompress, source, target);
      if (result.byteLength !== target.byteLength) throw wrongLength(result.byteLength);
      result.copy(target);
    },
  };
}

/** What is used of libzstd. Lengths are in bytes; a negative one is an error. */
interface ZstdCalls {
  readonly compress: NativeCall<[Buffer, number, Buffer, number, number]>;
  readonly decompress: NativeCall<[Buffer, number, Buffer, number]>;
  readonly frameLength: NativeCall<[Buffer, number]>;
  readonly errorName: (code: number) => string;
}

/** Errors are the largest values of size_t: as int64_t, small negative ones. */
function bindLibrary(name: string): ZstdCalls {
  const library = koffi.load(name);
  const bind = <K extends keyof ZstdCalls>(prototype: string): ZstdCalls[K] =>
    library.func(prototype) as unknown as ZstdCalls[K];
  return {
    compress: bind<'compress'>(
      'int64_t ZSTD_compress(void *out, size_t room, void *in, size_t length, int level)',
    ),
    decompress: bind<'decompress'>(
      'int64_t ZSTD_decompress(void *out, size_t room, void *in, size_t length)',
    ),
    frameLength: bind<'frameLength'>(
      'int64_t ZSTD_findFrameCompressedSize(void *in, size_t length)',
    ),
    errorName: bind<'errorName'>('const char *ZSTD_getErrorName(int64_t code)'),
  };
}

/**
 * Decompression of a whole frame needs no window, so that what a frame asks for does not matter.
 * @param name for dlopen(3) @throws Error
 */
export function zstdOfLibrary(name: string): Zstd {
  const { compress, decompress, frameLength, errorName } = bindLibrary(name);
  const check = (result: number): number => {
    if (result < 0) throw new Error(errorName(result));
    return result;
  };
  return {
    async compress(source, target) {
      const room = target.byteLength;
      const length = await inPool(compress, target, room, source, source.byteLength, LEVEL);
      return length < 0 && errorName(length) === TOO_SMALL ? undefined : check(length);
    },
    async decompress(source, target) {
      const { byteLength: length } = target;
      let from = 0;
      let done = 0;
      for (let frames = 0; done < length && frames < FRAMES_MAX; frames++) {
        const rest = source.subarray(from);
        const frame = check(frameLength(rest, rest.byteLength));
        const room = target.subarray(done);
        done += check(await inPool(decompress, room, room.byteLength, rest, frame));
        from += frame;
      }
      if (done !== length) throw wrongLength(done);
    },
  };
}

/** What the library calls a target that is too small. */
const TOO_SMALL = 'Destination buffer is too small';

/** @returns a length, or an error as a negative number */
function inPool<A extends unknown[]>(call: NativeCall<A>, ...args: A): Promise<number> {
  return new Promise((resolve, reject) => {
    startInPool(call, args, (error, result) => {
      if (error === null || error === undefined) resolve(result);
      else reject(error);
    });
  });
}

const wrongLength = (length: number): Error => new Error(`the stream gives ${length} bytes`);
