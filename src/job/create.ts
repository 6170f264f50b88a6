// SPDX-License-Identifier: MIT
/** `blockdev-create`: makes an image, and stays to tell how that went. */
import type { DriverOptions } from '../block/block-driver.js';
import { createImage, imageCreation } from '../block/create-image.js';
import type { BlockGraph } from '../block/graph.js';
import { Job, type JobObserver } from './job.js';

export interface CreateOptions {
  readonly id: string;
  /** Validated BlockdevCreateOptions, wire spelling. */
  readonly image: DriverOptions;
}

/** It takes effect by itself and is to be dismissed, as in QEMU. Its work counts as one step. */
export class CreateJob extends Job {
  override readonly type = 'create';
  readonly #graph: BlockGraph;
  readonly #image: DriverOptions;
  readonly #over = new AbortController();

  /** @throws BlockError DF_NOT_SUPPORTED when the driver makes no images */
  constructor(graph: BlockGraph, { id, image }: CreateOptions, observer: JobObserver) {
    imageCreation(graph, String(image.driver));
    super({ id, autoFinalize: true, autoDismiss: false }, observer);
    this.#graph = graph;
    this.#image = image;
  }

  protected override async run(): Promise<void> {
    this.progressTotal = 1;
    try {
      await createImage(this.#graph, this.#image, this.#over.signal);
    } finally {
      this.progressCurrent = 1;
    }
  }

  protected override brokenOff(): void {
    this.#over.abort();
  }
}
