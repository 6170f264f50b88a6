// SPDX-License-Identifier: MIT
/** The header of an open image: what it says now, and how it is changed. */
import {
  encodeExtensions,
  extensionsLength,
  type HeaderExtension,
} from '../../../../protocol/qcow2/extensions.js';
import { encodeQcow2Header, type Qcow2Header } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import { Mutex } from '../../../base/mutex.js';
import type { ImageIo } from './image-io.js';

/** All that the first cluster holds. */
export interface HeaderContent {
  readonly header: Qcow2Header;
  /** The header's bytes as read: fields that we don't know are kept. */
  readonly raw: Buffer;
  readonly extensions: readonly HeaderExtension[];
  /** Name of the backing file as noted in the image; undefined: none. */
  readonly backingName: string | undefined;
}

/** Fields of the header that may change; offsets of the name are worked out. */
export type HeaderChange = Partial<Omit<Qcow2Header, 'backingOffset' | 'backingLength'>>;

export class HeaderState {
  readonly #file: () => ImageIo;
  readonly #lock = new Mutex();
  #content: HeaderContent;

  constructor(content: HeaderContent, file: () => ImageIo) {
    this.#content = content;
    this.#file = file;
  }

  get header(): Qcow2Header {
    return this.#content.header;
  }

  get content(): HeaderContent {
    return this.#content;
  }

  extension(type: number): Uint8Array | undefined {
    return this.#content.extensions.find((extension) => extension.type === type)?.data;
  }

  /** Changes fields in the file; durable when it is done. On failure the old values stay in force. */
  update(change: HeaderChange): Promise<void> {
    return this.#lock.run(async () => {
      const header = { ...this.#content.header, ...change };
      const bytes = Buffer.from(this.#content.raw);
      encodeQcow2Header(header, bytes);
      await this.#file().write(0, bytes);
      await this.#file().flush();
      this.#content = { ...this.#content, header, raw: bytes };
    });
  }

  /**
   * Writes the first cluster anew, with other extensions or another backing file; durable when done.
   * @throws BlockError DF_INVALID when it does not all fit into a cluster
   */
  rewrite(
    change: Partial<Pick<HeaderContent, 'extensions' | 'backingName'>> & {
      readonly fields?: HeaderChange;
    },
  ): Promise<void> {
    return this.#lock.run(async () => {
      const { fields, ...parts } = change;
      const next = layOut({ ...this.#content, ...parts }, fields ?? {});
      await this.#file().write(0, next.cluster);
      await this.#file().flush();
      this.#content = next.content;
    });
  }
}

/**
 * The first cluster of an image.
 * @throws BlockError DF_INVALID when it does not all fit
 */
export function layOut(
  { header, raw, extensions, backingName }: HeaderContent,
  fields: HeaderChange,
): { readonly cluster: Buffer; readonly content: HeaderContent } {
  const clusterSize = 2 ** header.clusterBits;
  const name = Buffer.from(backingName ?? '', 'utf8');
  const extensionsAt = header.headerLength;
  const nameAt = extensionsAt + extensionsLength(extensions);
  if (nameAt + name.byteLength > clusterSize) {
    throw new BlockError('DF_INVALID', 'The header does not fit into a cluster');
  }
  const next: Qcow2Header = {
    ...header,
    ...fields,
    backingOffset: backingName === undefined ? 0n : BigInt(nameAt),
    backingLength: name.byteLength,
  };
  const cluster = Buffer.alloc(clusterSize);
  raw.copy(cluster, 0, 0, header.headerLength);
  encodeQcow2Header(next, cluster);
  cluster.set(encodeExtensions(extensions), extensionsAt);
  name.copy(cluster, nameAt);
  const head = Buffer.from(cluster.subarray(0, header.headerLength));
  return { cluster, content: { header: next, raw: head, extensions, backingName } };
}
