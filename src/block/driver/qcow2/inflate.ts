// SPDX-License-Identifier: MIT
/** Clusters compressed by zlib: a bare deflate stream, which may be followed by others' bytes. */
import { constants, type InputType, inflateRaw, type ZlibOptions } from 'node:zlib';
import { BlockError, toError } from '../../../base/errors.js';

const inflate = inflateRaw as (
  data: InputType,
  options: ZlibOptions,
  done: (error: Error | null, result: Buffer) => void,
) => void;

/**
 * Decompresses in the thread pool.
 * @param clusterSize bytes; the result has exactly so many
 * @throws BlockError DF_IO when it has not, or the stream is broken
 */
export function inflateCluster(compressed: Buffer, clusterSize: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const options = { finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength: clusterSize };
    inflate(compressed, options, (error, result) => {
      if (error === null && result.byteLength === clusterSize) {
        resolve(result);
        return;
      }
      const got = error === null ? `it gave ${result.byteLength} bytes` : 'the stream is broken';
      const message = `A compressed cluster can not be decompressed: ${got}`;
      reject(new BlockError('DF_IO', message, {}, error === null ? {} : { cause: toError(error) }));
    });
  });
}
