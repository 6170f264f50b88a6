// SPDX-License-Identifier: MIT
/** The command that makes images. */
import * as qapi from '../../../protocol/qapi/block-create.js';
import type { DriverOptions } from '../../block/block-driver.js';
import { imageCreation } from '../../block/create-image.js';
import type { BlockGraph } from '../../block/graph.js';
import { CreateJob } from '../../job/create.js';
import type { JobRegistry } from '../../job/job-registry.js';
import type { CommandRegistry } from '../registry.js';

export interface CreateServices {
  readonly graph: BlockGraph;
  readonly jobs: JobRegistry;
}

export function registerBlockCreate(
  registry: CommandRegistry,
  { graph, jobs }: CreateServices,
): void {
  registry.register(qapi.BLOCKDEV_CREATE, async ({ 'job-id': id, options }) => {
    const image = options as DriverOptions;
    // A driver that makes no images is told of first, as in QEMU; then comes the job's id.
    imageCreation(graph, String(image.driver));
    await jobs.run(id, () => new CreateJob(graph, { id, image }, jobs));
  });
}
