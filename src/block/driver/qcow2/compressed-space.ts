// SPDX-License-Identifier: MIT
/**
 * Room for compressed clusters, which lie one behind the other, byte by byte. A host cluster has as many
 * references as there are compressed clusters that lie in it, whole or in part.
 */
import { alignUp } from '../../../base/byte-range.js';
import { BlockError } from '../../../base/errors.js';
import { allocateLocked } from './allocate.js';
import type { Qcow2Image } from './image.js';
import type { ClusterRun } from './refcounts.js';

const SECTOR = 512;

export class CompressedSpace {
  readonly #image: Qcow2Image;
  /** The first free byte behind the compressed cluster that was placed last; 0: none is free. */
  #next = 0;
  #used = false;

  constructor(image: Qcow2Image) {
    this.#image = image;
  }

  /**
   * Takes room, and counts the reference. For who holds the image's allocation lock.
   * @param length bytes, at most those of a cluster
   * @returns host offset, bytes
   * @throws BlockError DF_NO_SPACE
   */
  async take(length: number): Promise<number> {
    const { metadata, options, refcounts, geometry } = this.#image;
    const { clusterSize } = geometry;
    if (options.lazyRefcounts) await metadata.markDirty();
    const open = await this.#openCluster();
    const start = this.#next;
    const room = open === undefined ? 0 : (open + 1) * clusterSize - start;
    let offset = start;
    if (room < length) {
      const added = await this.#newCluster();
      // Else what is left of the open cluster stays unused.
      if (open === undefined || added !== start + room) offset = added;
    }
    if (open !== undefined && offset === start) await refcounts.add({ first: open, count: 1 }, 1);
    const end = offset + length;
    this.#next = end % clusterSize === 0 ? 0 : end;
    this.#used = true;
    metadata.unsettle();
    return offset;
  }

  /** Fewer refer to these clusters: what is free in them may soon be somebody else's. */
  forget({ first, count }: ClusterRun): void {
    const cluster = Math.floor(this.#next / this.#image.geometry.clusterSize);
    if (first <= cluster && cluster < first + count) this.#next = 0;
  }

  /** The file ends with a sector, for those who read it by sectors. */
  async padFile(): Promise<void> {
    const { file } = this.#image;
    if (!this.#used || file.size % SECTOR === 0) return;
    await file.truncate(alignUp(file.size, SECTOR), { exact: false, preallocation: 'off' });
  }

  /** The cluster with room left, by number, unless its count can't go up. */
  async #openCluster(): Promise<number | undefined> {
    if (this.#next === 0) return undefined;
    const { refcounts, geometry } = this.#image;
    const cluster = Math.floor(this.#next / geometry.clusterSize);
    return (await refcounts.refcount(cluster)) < geometry.refcountMax ? cluster : undefined;
  }

  /** The larger the clusters, the fewer bits has an entry for the offset. */
  async #newCluster(): Promise<number> {
    const { geometry, frees } = this.#image;
    const { clusterSize: length, clusterBits } = geometry;
    const { offset } = await allocateLocked(this.#image, 1);
    if (offset + length <= 2 ** (62 - (clusterBits - 8))) return offset;
    frees.add({ offset, length, table: false, discard: false });
    throw new BlockError('DF_NO_SPACE', `No entry can name a compressed cluster at ${offset}`);
  }
}
