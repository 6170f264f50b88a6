// SPDX-License-Identifier: MIT
/** Commits below a user that keeps other writers away, as a guest's disk does. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { CommitJob } from '../../../src/job/commit.js';
import { createActiveCommit } from '../../../src/job/commit-active.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { reached } from '../../support/jobs.js';
import { createImage, expectEqual, MIB, pattern } from '../../support/qcow2.js';
import { Random } from '../../support/qcow2-model.js';
import { testScope } from '../../support/temp.js';
import { useNode } from '../block/driver/test-graph.js';

const SIZE = 4 * MIB;
const GUEST = {
  taken: PERM_CONSISTENT_READ | PERM_WRITE,
  shared: PERM_ALL & ~PERM_WRITE,
};

async function makeBench() {
  const scope = testScope();
  const dir = await scope.tempDir();
  let node: Record<string, unknown> | null = null;
  for (const name of ['base', 'middle', 'top', 'active']) {
    await createImage(join(dir, name), SIZE);
    const file = { driver: 'file', filename: join(dir, name) };
    node = { driver: 'qcow2', 'node-name': name, file, backing: node };
  }
  const { graph, backend, close } = await useNode(node ?? {}, GUEST);
  scope.defer(close);
  const content = Buffer.alloc(SIZE);
  const random = new Random(7);
  const write = async (): Promise<void> => {
    const at = random.below(SIZE - 90_000);
    const bytes = pattern(1 + random.below(90_000), random.below(255));
    await backend.write(at, bytes);
    bytes.copy(content, at);
  };
  const check = async (): Promise<void> => {
    const got = Buffer.alloc(SIZE);
    await backend.read(0, got);
    expectEqual(got, content);
  };
  const names = (): string[] =>
    graph.nodes.filter(({ driver }) => driver.name === 'qcow2').map(({ name }) => name);
  return { graph, backend, registry: new JobRegistry(), write, check, names };
}

describe('commit', () => {
  it.each(['completes', 'is cancelled'])('of the active layer %s', async (end) => {
    const { graph, backend, registry, write, check, names } = await makeBench();
    for (let writes = 0; writes < 20; writes++) await write();
    const top = graph.get('active');
    const options = { id: 'j', top, base: graph.get('base'), device: top };
    const job = await registry.run('j', () => createActiveCommit(graph, options, registry));
    for (let writes = 0; writes < 20; writes++) {
      await write();
      await check();
    }
    await reached(registry, job, 'ready');
    await write();
    if (end === 'completes') job.complete();
    else job.cancel({ force: true });
    await write();
    await job.concluded;
    await write();
    await check();
    expect(backend.root.node.name).toBe(end === 'completes' ? 'base' : 'active');
    // The user named the top: it stays, with what it reads.
    expect(names()).toContain('middle');
  });

  it.each(['completes', 'is cancelled'])('of layers between %s', async (end) => {
    const { graph, backend, registry, write, check, names } = await makeBench();
    for (let writes = 0; writes < 20; writes++) await write();
    const [device, top, base] = [graph.get('active'), graph.get('top'), graph.get('base')];
    const backing = { base, filename: undefined, maskProtocol: false };
    const options = { id: 'j', top, base, device, backing, autoFinalize: false };
    const job = await registry.run('j', () => CommitJob.create(graph, options, registry));
    await reached(registry, job, 'pending');
    await write();
    await check();
    if (end === 'completes') await job.finalize();
    else job.cancel({ force: true });
    await write();
    await job.concluded;
    await write();
    await check();
    expect(backend.root.node.name).toBe('active');
    expect(names().includes('middle')).toBe(end !== 'completes');
    expect(graph.get('base').readOnly).toBe(true);
  });
});
