// SPDX-License-Identifier: MIT
/**
 * A program that carries out a plan on an image until it is killed. It reads one line of JSON, and notes in a
 * file when a step begins (b), when it has ended (e), and when all so far must last (f).
 */
import { openSync, writeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { addingBitmap, removingBitmap } from '../../src/block/bitmap/bitmap-changes.js';
import type { InternalSnapshots } from '../../src/block/block-driver.js';
import { REQ_MAY_UNMAP } from '../../src/block/block-driver.js';
import { applyChanges } from '../../src/block/transaction.js';
import { localGraph, RESIZER, type UsedNode, useNode } from '../unit/block/driver/test-graph.js';
import { pattern } from './pattern.js';
import type { Request, Step } from './qcow2-plan.js';

export interface Orders {
  readonly path: string;
  /** Where steps are noted. */
  readonly log: string;
  readonly nodeOptions: object;
  readonly steps: readonly Step[];
}

const open = ({ path, nodeOptions }: Orders): Promise<UsedNode> => {
  const file = { driver: 'file', filename: path };
  const common = { driver: 'qcow2', 'node-name': 'disk', discard: 'unmap', file };
  return useNode({ ...common, ...nodeOptions }, RESIZER, localGraph());
};

/** What a crash has left of bitmaps can only be removed. */
async function removeBroken({ graph, node }: UsedNode): Promise<void> {
  for (const bitmap of [...node.bitmaps.values()]) {
    if (!bitmap.inconsistent || bitmap.name === undefined) continue;
    await applyChanges([removingBitmap(graph, { node: 'disk', name: bitmap.name })]);
  }
}

async function request({ node }: UsedNode, asked: Request): Promise<void> {
  const { at, length } = asked;
  if (asked.kind === 'write') await node.write(at, pattern(length, asked.tag));
  else if (asked.kind === 'zero') {
    await node.writeZeroes(at, length, asked.unmap ? REQ_MAY_UNMAP : 0);
  } else await node.discard(at, length);
}

function snapshotsOf({ node }: UsedNode): InternalSnapshots {
  const { snapshots } = node.driver;
  if (snapshots === undefined) throw new Error('the driver has no snapshots');
  return snapshots;
}

async function remove(snapshots: InternalSnapshots, name: string): Promise<void> {
  const found = (await snapshots.list()).find((each) => each.name === name);
  if (found === undefined) throw new Error(`there is no snapshot ${name}`);
  await snapshots.delete(found);
}

async function perform(used: UsedNode, step: Step): Promise<void> {
  const { node, graph } = used;
  if (step.kind === 'requests') {
    await Promise.all(step.requests.map((each) => request(used, each)));
  } else if (step.kind === 'flush') await node.flush();
  else if (step.kind === 'resize') {
    await node.truncate(step.size);
  } else if (step.kind === 'snapshot') {
    const moment = { name: step.name, dateSeconds: 1_700_000_000, dateNanoseconds: 0 };
    await snapshotsOf(used).create(moment);
  } else if (step.kind === 'delete') await remove(snapshotsOf(used), step.name);
  else if (step.kind === 'apply') await snapshotsOf(used).apply(step.name);
  else if (step.kind === 'add-bitmap') {
    const added = { node: 'disk', name: step.name, granularity: 4096, persistent: true };
    await applyChanges([addingBitmap(graph, added)]);
  } else if (step.kind === 'remove-bitmap') {
    await applyChanges([removingBitmap(graph, { node: 'disk', name: step.name })]);
  }
}

/** When these have ended, all before them lasts. */
const LASTING = new Set<Step['kind']>(['flush', 'reopen', 'snapshot', 'delete', 'apply']);

async function live(orders: Orders): Promise<void> {
  const log = openSync(orders.log, 'a');
  let used = await open(orders);
  await removeBroken(used);
  for (const [nth, step] of orders.steps.entries()) {
    writeSync(log, `b ${nth}\n`);
    if (step.kind === 'reopen') {
      await used.close();
      used = await open(orders);
    } else await perform(used, step);
    writeSync(log, `${LASTING.has(step.kind) ? 'f' : 'e'} ${nth}\n`);
  }
  await used.close();
}

const input = createInterface({ input: process.stdin });
input.once('line', (line) => {
  live(JSON.parse(line) as Orders).then(
    () => process.exit(0),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
console.log('ready');
