// SPDX-License-Identifier: MIT
import type { Job } from '../../src/job/job.js';
import type { JobRegistry } from '../../src/job/job-registry.js';

/** Waits until the job is in the state. */
export function reached(registry: JobRegistry, job: Job, state: string): Promise<void> {
  if (job.state === state) return Promise.resolve();
  return new Promise((resolve) => {
    const stop = registry.listen({
      stateChanged: (changed) => {
        if (changed !== job || changed.state !== state) return;
        stop();
        resolve();
      },
    });
  });
}
