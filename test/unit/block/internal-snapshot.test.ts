// SPDX-License-Identifier: MIT
/** Snapshots inside images that are in use, and how a transaction undoes them. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { InternalSnapshot } from '../../../src/block/block-driver.js';
import {
  deleteInternalSnapshot,
  takingInternalSnapshot,
} from '../../../src/block/internal-snapshot.js';
import { applyChanges, type Change } from '../../../src/block/transaction.js';
import { runPeer } from '../../support/peers.js';
import { VolatileFile } from '../../support/power-loss.js';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  pattern,
  qemuContent,
} from '../../support/qcow2.js';
import { testScope } from '../../support/temp.js';
import { localGraph, type UsedNode, useNode } from './driver/test-graph.js';

interface Bench {
  readonly file: VolatileFile;
  readonly used: UsedNode;
  /** Lets go of the image and puts it where qemu-img can look at it. @returns its path */
  close(): Promise<string>;
}

async function makeBench(options = ''): Promise<Bench> {
  const dir = await testScope().tempDir();
  const path = join(dir, 'image');
  await createImage(path, 1 * MIB, options);
  const file = new VolatileFile(await readFile(path), 8 * MIB);
  const graph = localGraph();
  graph.drivers.register(file.definition());
  const used = await useNode(
    { driver: 'qcow2', 'node-name': 'd', file: { driver: 'volatile' } },
    undefined,
    graph,
  );
  const close = async (): Promise<string> => {
    await used.close();
    await writeFile(path, file.content);
    return path;
  };
  return { file, used, close };
}

const taking = ({ graph, node }: UsedNode, name: string): Change =>
  takingInternalSnapshot(graph, () => node, { device: 'd', name });

const names = async ({ node }: UsedNode): Promise<string[]> =>
  ((await node.driver.snapshots?.list()) ?? []).map(({ name }) => name);

const failing = (before?: () => void): Change => ({
  prepare() {
    before?.();
    throw new Error('no');
  },
});

describe('a snapshot inside an image', () => {
  it('has what was written before it, and nothing of what came after', async () => {
    const bench = await makeBench('cluster_size=4k');
    const { used } = bench;
    await used.backend.write(0, pattern(300 * KIB, 1));
    const before = await contentOf(used.backend);
    const early = used.backend.write(500 * KIB, pattern(8 * KIB, 2));
    const taken = applyChanges([taking(used, 'one')]);
    await early;
    pattern(8 * KIB, 2).copy(before, 500 * KIB);
    await taken;
    await used.backend.write(100, pattern(200 * KIB, 3));
    const after = await contentOf(used.backend);
    const path = await bench.close();
    await expectSound(path);
    expectEqual(await qemuContent(path, `${path}.raw`), after);
    await runPeer('qemu-img', ['snapshot', '-a', 'one', path]);
    expectEqual(await qemuContent(path, `${path}.raw`), before);
    await runPeer('qemu-img', ['snapshot', '-d', 'one', path]);
    await expectSound(path);
  });

  it('is deleted when its transaction fails, the last first', async () => {
    const bench = await makeBench();
    const { used } = bench;
    await used.backend.write(0, pattern(300 * KIB, 1));
    const before = await contentOf(used.backend);
    await applyChanges([taking(used, 'kept')]);
    const changes = [taking(used, 'one'), taking(used, 'two'), failing()];
    await expect(applyChanges(changes)).rejects.toThrow('no');
    expect(await names(used)).toEqual(['kept']);
    expectEqual(await contentOf(used.backend), before);
    await expectSound(await bench.close());
  });

  it('stays where it can not be deleted again, and who looks on is told', async () => {
    const bench = await makeBench();
    const { used, file } = bench;
    await used.backend.write(0, pattern(300 * KIB, 1));
    const before = await contentOf(used.backend);
    const left: [string, InternalSnapshot, string][] = [];
    used.graph.observer.snapshotLeft = (node, snapshot, error) =>
      left.push([node.name, snapshot, String(error)]);
    const breaking = failing(() => {
      file.failing = 1;
    });
    await expect(applyChanges([taking(used, 'one'), breaking])).rejects.toThrow('no');
    expect(left).toEqual([
      [
        'd',
        expect.objectContaining({ id: '1', name: 'one' }),
        expect.stringContaining('on purpose'),
      ],
    ]);
    expect(await names(used)).toEqual(['one']);
    await used.backend.write(0, pattern(64 * KIB, 2));
    pattern(64 * KIB, 2).copy(before, 0);
    expectEqual(await contentOf(used.backend), before);
    const path = await bench.close();
    await expectSound(path);
    await runPeer('qemu-img', ['snapshot', '-d', 'one', path]);
    await expectSound(path);
  });

  it('is not there, and nothing has changed, whichever write fails', async () => {
    for (let skip = 0; ; skip++) {
      const bench = await makeBench('cluster_size=4k,refcount_bits=64');
      const { used, file } = bench;
      await used.backend.write(0, pattern(300 * KIB, 1));
      await used.backend.flush();
      const before = await contentOf(used.backend);
      const stop = failAfter(file, skip);
      const outcome = await applyChanges([taking(used, 'one')]).then(
        () => 'taken',
        (error: unknown) => String(error),
      );
      const reached = stop() > skip;
      expect(await names(used)).toEqual(outcome === 'taken' ? ['one'] : []);
      expectEqual(await contentOf(used.backend), before);
      await used.backend.write(5000, pattern(9000, 2));
      pattern(9000, 2).copy(before, 5000);
      expectEqual(await contentOf(used.backend), before);
      const path = await bench.close();
      await runPeer('qemu-img', ['check', '-q', '-r', 'leaks', path]);
      await expectSound(path);
      if (!reached) break;
    }
  });

  it('is refused for a name that is empty, too long or taken', async () => {
    const { used, close } = await makeBench();
    await applyChanges([taking(used, 'x'.repeat(255))]);
    for (const [name, text] of [
      ['', 'Name is empty'],
      ['é'.repeat(128), 'Name is longer than 255 bytes'],
      ['x'.repeat(255), 'already exists on device'],
    ] as const) {
      await expect(applyChanges([taking(used, name)])).rejects.toThrow(text);
    }
    await close();
  });

  it('is refused while the node is inactive', async () => {
    const { used, close } = await makeBench();
    used.node.active = false;
    await expect(applyChanges([taking(used, 'a')])).rejects.toThrow("Device 'd' is read only");
    used.node.active = true;
    await close();
  });

  it('is deleted by id, by name, or by both', async () => {
    const { used, close } = await makeBench();
    const remove = (id: string | undefined, name: string | undefined): Promise<InternalSnapshot> =>
      deleteInternalSnapshot(used.graph, () => used.node, { device: 'd', id, name });
    for (const name of ['2', 'b', 'c']) await applyChanges([taking(used, name)]);
    // '2' is the name of the first and the id of the second.
    expect(await remove('2', undefined)).toMatchObject({ id: '2', name: 'b' });
    expect(await remove(undefined, '2')).toMatchObject({ id: '1', name: '2' });
    await expect(remove('3', 'b')).rejects.toThrow(
      "Snapshot with id '3' and name 'b' does not exist on device 'd'",
    );
    expect(await remove('3', 'c')).toMatchObject({ id: '3' });
    await expectSound(await close());
  });
});

/** The write after the next `skip` ones fails. @returns what ends that and tells how many were tried */
function failAfter(file: VolatileFile, skip: number): () => number {
  let tried = 0;
  const write = file.write.bind(file);
  file.write = (offset, buffer) => {
    if (tried++ === skip) file.failing = 1;
    return write(offset, buffer);
  };
  return () => {
    file.write = write;
    file.failing = 0;
    return tried;
  };
}
