// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import { BlockBackend } from '../../../src/block/backend.js';
import { createCopyBeforeWriteDriver } from '../../../src/block/filter/copy-before-write.js';
import { snapshotAccessDefinition } from '../../../src/block/filter/snapshot-access.js';
import type { BlockNode } from '../../../src/block/node.js';
import { openNode } from '../../../src/block/open-node.js';
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from '../../../src/block/permissions.js';
import { BackupJob } from '../../../src/job/backup.js';
import { checkBackup } from '../../../src/job/backup-request.js';
import { JobRegistry } from '../../../src/job/job-registry.js';
import { patternBytes } from '../../support/images.js';
import { reached } from '../../support/jobs.js';
import { memoryGraph } from '../../support/memory-driver.js';

const MIB = 1024 * 1024;
const CLUSTER = MIB;
/** More than one batch. */
const SIZE = 80 * MIB;

/** A disk with a writer above a copy-before-write filter, its snapshot, and where that is backed up. */
async function makeBench() {
  const { graph, add, driverOf } = memoryGraph();
  graph.drivers.register(createCopyBeforeWriteDriver((name) => graph.find(name)));
  graph.drivers.register(snapshotAccessDefinition);
  const disk = driverOf(await add('disk', SIZE));
  const fleece = driverOf(await add('fleece', SIZE, { discard: 'unmap' }));
  const target = await add('target', SIZE);
  patternBytes(SIZE, 4).copy(disk.data);
  const old = Buffer.from(disk.data);
  const cbw = await openNode(graph, {
    ...{ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'fleece' },
    'min-cluster-size': CLUSTER,
  });
  const guest = new BlockBackend("export 'guest'");
  const permissions = { taken: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
  await graph.attach(guest, cbw, permissions);
  const snapshot = await openNode(
    graph,
    { driver: 'snapshot-access', 'node-name': 'snap', file: 'cbw' },
    { monitorOwned: true },
  );
  const registry = new JobRegistry();
  const backup = async (source: BlockNode): Promise<BackupJob> => {
    const request = { source, target, sync: 'full', compress: false, speed: 0 } as const;
    const checked = await checkBackup({ ...request, discardSource: true });
    const options = { ...checked, id: 'job', autoDismiss: false };
    return registry.run('job', () => BackupJob.create(graph, options, registry));
  };
  return {
    graph,
    disk,
    fleece,
    target,
    copy: driverOf(target),
    old,
    guest,
    snapshot,
    registry,
    backup,
  };
}

async function readable(snapshot: BlockNode, offset: number): Promise<boolean> {
  try {
    await snapshot.read(offset, Buffer.alloc(512));
    return true;
  } catch {
    return false;
  }
}

describe('a backup that discards its source', () => {
  it('leaves nothing of the snapshot, whose room is given back', async () => {
    const { snapshot, backup, registry, guest, fleece, copy, old } = await makeBench();
    await guest.write(0, Buffer.alloc(SIZE / 2, 1));
    const job = await backup(snapshot);
    await reached(registry, job, 'concluded');
    expect(job.error).toBeUndefined();
    expect(copy.data.equals(old)).toBe(true);
    expect(fleece.data.every((byte) => byte === 0)).toBe(true);
    const before = fleece.calls.length;
    await guest.write(0, Buffer.alloc(SIZE, 2));
    expect(fleece.calls.length).toBe(before);
    expect(await readable(snapshot, 0)).toBe(false);
  });

  it('keeps what the target has not got, or not on stable storage, when it fails', async () => {
    const { snapshot, backup, registry, guest, fleece, copy, old } = await makeBench();
    await guest.write(0, Buffer.alloc(SIZE / 2, 1));
    copy.fail.flush = new BlockError('DF_IO', 'the server is gone');
    const job = await backup(snapshot);
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toBe('the server is gone');
    expect(fleece.data.subarray(0, SIZE / 2).equals(old.subarray(0, SIZE / 2))).toBe(true);
    const all = Buffer.alloc(SIZE);
    await snapshot.read(0, all);
    expect(all.equals(old)).toBe(true);
  });

  it('discards what was flushed before a failure, and nothing else', async () => {
    const { snapshot, backup, registry, copy, old } = await makeBench();
    const write = copy.write.bind(copy);
    copy.write = (offset, buffer) => {
      if (copy.flushes > 0) throw new BlockError('DF_IO', 'no more');
      return write(offset, buffer);
    };
    const job = await backup(snapshot);
    await reached(registry, job, 'concluded');
    expect(job.error?.message).toBe('no more');
    let gone = 0;
    for (let at = 0; at < SIZE; at += CLUSTER) {
      if (await readable(snapshot, at)) continue;
      gone += CLUSTER;
      const range = [at, at + CLUSTER] as const;
      expect(copy.data.subarray(...range).equals(old.subarray(...range)), String(at)).toBe(true);
    }
    expect(gone).toBe(64 * MIB);
  });

  it('is refused of anything but a snapshot, and of one that is read-only', async () => {
    const { graph, backup, registry } = await makeBench();
    await expect(async () => backup(graph.get('cbw'))).rejects.toThrow(
      "discard-source needs a snapshot-access node: the users of 'cbw' would lose its data",
    );
    const node = await openNode(graph, {
      ...{ driver: 'snapshot-access', 'node-name': 'ro', file: 'cbw', 'read-only': true },
    });
    await expect(async () => backup(node)).rejects.toThrow("Block node 'ro' is read-only");
    expect(registry.jobs).toEqual([]);
  });
});
