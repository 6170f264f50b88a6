// SPDX-License-Identifier: MIT
/** The clusters that were decompressed last: small reads one after the other hit the same cluster. */
import { QCOW2_DECOMPRESSED_MAX } from '../../../base/limits.js';

export class DecompressedClusters {
  readonly #max: number;
  /** By place of the compressed data; the oldest first. */
  readonly #clusters = new Map<number, Buffer>();

  /** @param clusterSize bytes */
  constructor(clusterSize: number) {
    this.#max = Math.max(Math.floor(QCOW2_DECOMPRESSED_MAX / clusterSize), 1);
  }

  get(offset: number): Buffer | undefined {
    return this.#clusters.get(offset);
  }

  put(offset: number, cluster: Buffer): void {
    this.#clusters.set(offset, cluster);
    if (this.#clusters.size <= this.#max) return;
    for (const oldest of this.#clusters.keys()) {
      this.#clusters.delete(oldest);
      break;
    }
  }

  /** What was compressed may be something else from now on. */
  clear(): void {
    this.#clusters.clear();
  }
}
