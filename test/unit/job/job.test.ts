// SPDX-License-Identifier: MIT
/** The life of a job, whatever its work is. */
import { setImmediate as turn } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Job } from '../../../src/job/job.js';
import { JobRegistry } from '../../../src/job/job-registry.js';

class WorkingJob extends Job {
  override readonly type = 'working';
  end: () => void = () => undefined;
  wentOn = 0;

  protected override run(): Promise<void> {
    return new Promise((resolve) => {
      this.end = resolve;
    });
  }

  protected override async runOn(): Promise<void> {
    this.wentOn++;
  }
}

async function endingJob(): Promise<{ job: WorkingJob; states: string[] }> {
  const registry = new JobRegistry();
  const states: string[] = [];
  registry.listen({ stateChanged: ({ state }) => states.push(state) });
  const job = await registry.run('j', () => new WorkingJob({ id: 'j' }, registry));
  return { job, states };
}

it('is paused when it is told so at the moment at which its work ends, and goes on from there', async () => {
  const { job, states } = await endingJob();
  job.end();
  job.pause();
  await turn();
  expect([job.state, job.wentOn]).toEqual(['paused', 0]);
  job.resume();
  await job.concluded;
  expect(job.wentOn).toBe(1);
  expect(states.join(' ')).toBe('created running paused running waiting pending concluded null');
});

it('is cancelled in such a pause', async () => {
  const { job } = await endingJob();
  job.end();
  job.pause();
  await turn();
  job.cancel({ force: true });
  await job.concluded;
  expect(job.error?.message).toBe('Operation canceled');
});
