// SPDX-License-Identifier: MIT
/**
 * Power that is lost while internal snapshots are made, deleted and applied, beside requests: qemu-img
 * finds no corruption, the image has the snapshots from before or those from after, each whole, and what
 * was flushed. QCOW2_SNAPSHOT_LOSSES sets how many images.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  deleteInternalSnapshot,
  takingInternalSnapshot,
} from '../../src/block/internal-snapshot.js';
import type { BlockNode } from '../../src/block/node.js';
import { applyChanges } from '../../src/block/transaction.js';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import type { VolatileFile } from '../support/power-loss.js';
import { createImage, expectEqual, expectSound, KIB, MIB, qemuContent } from '../support/qcow2.js';
import { ImageModel, Random } from '../support/qcow2-model.js';
import { testScope } from '../support/temp.js';
import { openVolatile } from '../support/volatile-image.js';
import type { UsedNode } from '../unit/block/driver/test-graph.js';

const RUNS = Number(process.env.QCOW2_SNAPSHOT_LOSSES ?? 10);
const FIRST_SEED = Number(process.env.QCOW2_SNAPSHOT_LOSS_SEED ?? 1);
const SIZE = 1 * MIB;
/** Changes of snapshots in each image. */
const ROUNDS = 5;
/** Moments of each change at which the power is lost, at most. */
const LOSSES = 3;
const SNAPSHOTS_MAX = 3;

/** What each snapshot holds, by name. */
type Held = ReadonlyMap<string, Buffer>;

interface Loss {
  readonly left: Buffer;
  /** The active content, but for bytes that are touched. One of these. */
  readonly contents: readonly Buffer[];
  readonly touched: Buffer;
  /** The snapshots from before the change and, where it was under way, from after it. */
  readonly snapshots: readonly Held[];
}

class Trial {
  readonly losses: Loss[] = [];
  #held: Held = new Map();
  #names = 0;

  constructor(
    readonly random: Random,
    readonly file: VolatileFile,
    readonly used: UsedNode,
    readonly model: ImageModel,
  ) {}

  async round(): Promise<void> {
    const { random, model, used } = this;
    for (let step = random.below(5); step >= 0; step--) await model.step(used.backend);
    await used.backend.flush();
    model.settled();
    const names = [...this.#held.keys()];
    const kind = random.below(4);
    if (names.length > 0 && kind === 0) await this.#apply(random.pick(names));
    else if (names.length === SNAPSHOTS_MAX || (names.length > 0 && kind === 1))
      await this.#delete(random.pick(names));
    else await this.#create(`s${++this.#names}`);
  }

  async #create(name: string): Promise<void> {
    const { model, used } = this;
    const flushed = Buffer.from(model.content);
    const running = [model.step(used.backend)];
    const after = new Map(this.#held).set(name, Buffer.from(model.content));
    const change = takingInternalSnapshot(used.graph, () => used.node, { device: 'd', name });
    await this.#watch(applyChanges([change]), { flushed: [flushed], after, running });
  }

  async #delete(name: string): Promise<void> {
    const { model, used } = this;
    const flushed = Buffer.from(model.content);
    const running = [model.step(used.backend)];
    const after = new Map(this.#held);
    after.delete(name);
    const wanted = { device: 'd', id: undefined, name };
    const gone = deleteInternalSnapshot(used.graph, () => used.node, wanted);
    await this.#watch(gone, { flushed: [flushed], after, running });
  }

  /** Nobody uses the image meanwhile. */
  async #apply(name: string): Promise<void> {
    const { model, used } = this;
    const before = Buffer.from(model.content);
    const content = this.#held.get(name) ?? before;
    const applied = snapshotsOf(used.node).apply(name);
    await this.#watch(applied, { flushed: [before, content], after: this.#held, running: [] });
    model.content = Buffer.from(content);
  }

  /** Loses power now and then until the change is done, and once after it. */
  async #watch(
    change: Promise<unknown>,
    {
      flushed,
      after,
      running,
    }: {
      readonly flushed: readonly Buffer[];
      readonly after: Held;
      readonly running: Promise<void>[];
    },
  ): Promise<void> {
    const { random, model, used, file } = this;
    const state = { done: false };
    const ended = change.finally(() => {
      state.done = true;
    });
    const lose = (contents: readonly Buffer[], snapshots: readonly Held[]): void => {
      const touched = Buffer.from(model.touched);
      this.losses.push({ left: file.loss(random), contents, touched, snapshots });
    };
    let left = LOSSES;
    await nextTurn();
    // What is asked for now waits until the change is done.
    if (running.length > 0) running.push(model.step(used.backend));
    while (!state.done) {
      if (left > 0 && random.below(12) === 0) {
        lose(flushed, [this.#held, after]);
        left--;
      }
      await nextTurn();
    }
    await ended;
    lose(flushed.slice(-1), [after]);
    await Promise.all(running);
    this.#held = after;
  }
}

function snapshotsOf(node: BlockNode): NonNullable<BlockNode['driver']['snapshots']> {
  const { snapshots } = node.driver;
  if (snapshots === undefined) throw new Error('no snapshots');
  return snapshots;
}

async function runOne(seed: number): Promise<void> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const random = new Random(seed * 7919);
  const path = join(dir, 'image');
  const clusterSize = random.pick([512, 4 * KIB, 16 * KIB, 64 * KIB]);
  const version2 = random.below(5) === 0;
  const extended = !version2 && clusterSize >= 16 * KIB && random.below(2) === 0;
  await createImage(
    path,
    SIZE,
    version2
      ? `compat=0.10,cluster_size=${clusterSize}`
      : `cluster_size=${clusterSize},extended_l2=${extended ? 'on' : 'off'},` +
          `refcount_bits=${random.pick([4, 8, 16, 64])}`,
  );
  const content = Buffer.alloc(SIZE);
  const capacity = 16 * MIB;
  const { file, used } = await openVolatile(path, { random, clusterSize, capacity });
  const model = new ImageModel({ random, content, clusterSize, discards: !version2 });
  const trial = new Trial(random, file, used, model);
  for (let round = 0; round < ROUNDS; round++) await trial.round();
  await model.compare(used.backend);
  await used.close();
  await writeFile(path, file.content);
  await expectSound(path);
  for (const loss of trial.losses) await checkLoss(loss, path, join(dir, 'raw'));
}

async function checkLoss(loss: Loss, path: string, raw: string): Promise<void> {
  await writeFile(path, loss.left);
  const { code, stdout, stderr } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', path]);
  // 3: leaks, nothing worse.
  expect([0, 3], stdout + stderr).toContain(code);
  const info = await runPeerJson<{ snapshots?: { name: string }[] }>('qemu-img', [
    ...['info', '--output=json', path],
  ]);
  const names = (info.snapshots ?? []).map(({ name }) => name);
  const held = loss.snapshots.find((one) => [...one.keys()].join() === names.join());
  expect(held, `snapshots ${names}`).toBeDefined();
  for (const [name, content] of held ?? []) {
    const chosen = ['-l', `snapshot.name=${name}`];
    await runPeer('qemu-img', ['convert', '-f', 'qcow2', ...chosen, '-O', 'raw', path, raw]);
    expectEqual(await readFile(raw), content);
  }
  const content = await qemuContent(path, raw);
  const matching = loss.contents.filter((wanted) => differs(content, wanted, loss.touched) < 0);
  expect(matching.length, 'active content').toBeGreaterThan(0);
  if (code === 3) await runPeer('qemu-img', ['check', '-q', '-f', 'qcow2', '-r', 'leaks', path]);
  await expectSound(path);
}

/** The first byte that differs and was not touched; -1: none. */
function differs(content: Buffer, wanted: Buffer, touched: Buffer): number {
  if (content.equals(wanted)) return -1;
  for (let at = 0; at < content.byteLength; at++) {
    if (content[at] !== wanted[at] && touched[at] !== 1) return at;
  }
  return -1;
}

describe('power that is lost while snapshots change', () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
    it(`leaves image ${seed} sound, with whole snapshots`, () => runOne(seed));
  }
});
