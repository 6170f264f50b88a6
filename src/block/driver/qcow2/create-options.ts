// SPDX-License-Identifier: MIT
/** `blockdev-create` of a qcow2 image. @see qapi BlockdevCreateOptionsQcow2 */
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { KIB } from '../../../base/limits.js';
import type {
  CreateContext,
  DriverOptions,
  ImageCreation,
  PreallocationMode,
} from '../../block-driver.js';
import type { Secrets } from '../../crypto/secrets.js';
import { checkCreateOptions, createQcow2, type Qcow2CreateOptions } from './create.js';
import { encryptionHeaderLength, newEncryption, type WireEncryption } from './create-encryption.js';
import { measureQcow2 } from './measure.js';

/** The members of BlockdevCreateOptionsQcow2, without its nodes. */
interface WireOptions {
  readonly 'data-file-raw'?: boolean;
  readonly 'extended-l2'?: boolean;
  readonly size: number;
  readonly version?: 'v2' | 'v3';
  readonly 'backing-file'?: string;
  readonly 'backing-fmt'?: string;
  readonly 'cluster-size'?: number;
  readonly preallocation?: PreallocationMode;
  readonly 'lazy-refcounts'?: boolean;
  readonly 'refcount-bits'?: number;
  readonly 'compression-type'?: 'zlib' | 'zstd';
  readonly encrypt?: WireEncryption;
}

export function qcow2Creation(secrets: Secrets): ImageCreation {
  return {
    nodes: [
      { key: 'file', required: true },
      { key: 'data-file', required: false },
    ],
    backing: true,
    check(options) {
      const { encrypt } = options as unknown as WireOptions;
      const encryption = newEncryption(encrypt, secrets);
      const hasDataFile = options['data-file'] !== undefined;
      checkCreateOptions({ ...wanted(options), ...given('encryption', encryption) }, hasDataFile);
    },
    create: (options, context) => create(options, context, secrets),
    measure: async (options, source) => {
      const { encrypt } = options as unknown as WireOptions;
      // Before the rest: the secret has to be there, as for making the image.
      const header = encryptionHeaderLength(newEncryption(encrypt, secrets));
      const image = wanted(options);
      const measured = await measureQcow2(image, source);
      const more = alignUp(header, image.clusterSize ?? 64 * KIB);
      const { required, fullyAllocated } = measured;
      return { ...measured, required: required + more, fullyAllocated: fullyAllocated + more };
    },
  };
}

async function create(
  options: DriverOptions,
  context: CreateContext,
  secrets: Secrets,
): Promise<void> {
  const { encrypt } = options as unknown as WireOptions;
  const data = context.findNode('data-file');
  const dataFilename = data?.root.node.driver.filename;
  if (dataFilename === '') {
    throw new BlockError('DF_INVALID', 'The data file has no name that the image could note');
  }
  await createQcow2(context.node('file').root, {
    ...wanted(options),
    signal: context.signal,
    ...given('dataFile', data?.root),
    ...given('dataFileName', dataFilename),
    ...given('encryption', newEncryption(encrypt, secrets)),
  });
}

/** All that does not need nodes. */
function wanted(options: DriverOptions): Qcow2CreateOptions {
  const wire = options as unknown as WireOptions;
  return {
    size: Number(wire.size),
    ...given('version', wire.version),
    ...given('clusterSize', wire['cluster-size']),
    ...given('refcountBits', wire['refcount-bits']),
    ...given('lazyRefcounts', wire['lazy-refcounts']),
    ...given('extendedL2', wire['extended-l2']),
    ...given('backingFile', wire['backing-file']),
    ...given('backingFormat', wire['backing-fmt']),
    ...given('dataFileRaw', wire['data-file-raw']),
    ...given('preallocation', wire.preallocation),
    ...given('compressionType', wire['compression-type']),
  };
}

function given<K extends keyof Qcow2CreateOptions>(
  key: K,
  value: Qcow2CreateOptions[K] | undefined,
): Partial<Pick<Qcow2CreateOptions, K>> {
  return (value === undefined ? {} : { [key]: value }) as Partial<Pick<Qcow2CreateOptions, K>>;
}
