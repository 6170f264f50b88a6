// SPDX-License-Identifier: MIT
/** How clusters are compressed: by zlib, as a bare deflate stream, or by zstd. */
import { constants, deflateRaw, type InputType, inflateRaw, type ZlibOptions } from 'node:zlib';
import { QCOW2_COMPRESSION_ZSTD } from '../../../../protocol/qcow2/header.js';
import { BlockError, toError } from '../../../base/errors.js';
import { loadZstd, type Zstd } from '../../../sys/zstd.js';

/** The work is done in the thread pool. */
export interface ClusterCodec {
  /** @returns length in `target`, bytes; undefined: it does not shrink by a byte or more */
  compress(cluster: Buffer, target: Buffer): Promise<number | undefined>;
  /**
   * @param compressed begins with the stream, which may be followed by others' bytes
   * @param cluster has exactly as many bytes as the stream has to give
   * @throws BlockError DF_IO when it gives others, or is broken
   */
  decompress(compressed: Buffer, cluster: Buffer): Promise<void>;
}

/**
 * @param compressionType as it stands in the header
 * @throws BlockError DF_NOT_SUPPORTED, naming what is missing on this machine
 */
export function codecFor(compressionType: number, load: () => Zstd = loadZstd): ClusterCodec {
  if (compressionType !== QCOW2_COMPRESSION_ZSTD) return ZLIB;
  try {
    return zstdCodec(load());
  } catch (error) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      'qcow2: compression by zstd needs the library libzstd.so.1, or Node.js 22.15',
      {},
      { cause: toError(error) },
    );
  }
}

type Done = (error: Error | null, result: Buffer) => void;
type ZlibCall = (data: InputType, options: ZlibOptions, done: Done) => void;

/** Readers have no larger window: 2^12 bytes. */
const WINDOW_BITS = 12;
const MEMORY_LEVEL = 9;
/** Room behind the result, so that zlib need not be asked again whether there is more. */
const SPARE = 64;

const ZLIB: ClusterCodec = {
  compress: (cluster, target) =>
    new Promise((resolve, reject) => {
      const { byteLength } = cluster;
      const options = {
        ...{ windowBits: WINDOW_BITS, memLevel: MEMORY_LEVEL, chunkSize: byteLength + SPARE },
        maxOutputLength: byteLength - 1,
      };
      (deflateRaw as ZlibCall)(cluster, options, (error, result) => {
        if (error === null) resolve(result.copy(target));
        else if ('code' in error && error.code === 'ERR_BUFFER_TOO_LARGE') resolve(undefined);
        else reject(failed(error));
      });
    }),
  decompress: (compressed, cluster) =>
    new Promise((resolve, reject) => {
      const { byteLength } = cluster;
      const options = {
        ...{ finishFlush: constants.Z_SYNC_FLUSH, chunkSize: byteLength + SPARE },
        maxOutputLength: byteLength,
      };
      (inflateRaw as ZlibCall)(compressed, options, (error, result) => {
        if (error !== null) return reject(broken(error));
        if (result.copy(cluster) === byteLength) resolve();
        else reject(broken(new Error(`the stream gives ${result.byteLength} bytes`)));
      });
    }),
};

function zstdCodec(zstd: Zstd): ClusterCodec {
  return {
    async compress(cluster, target) {
      try {
        return await zstd.compress(cluster, target.subarray(0, cluster.byteLength - 1));
      } catch (error) {
        throw failed(error);
      }
    },
    async decompress(compressed, cluster) {
      try {
        await zstd.decompress(compressed, cluster);
      } catch (error) {
        throw broken(error);
      }
    },
  };
}

function failed(error: unknown): BlockError {
  return new BlockError('DF_IO', 'A cluster can not be compressed', {}, { cause: toError(error) });
}

function broken(error: unknown): BlockError {
  const message = 'A compressed cluster can not be decompressed';
  return new BlockError('DF_IO', message, {}, { cause: toError(error) });
}
