// SPDX-License-Identifier: MIT
/**
 * Writers that are killed at any instant: qemu-img finds no corruption (leaks may be), what was flushed is
 * there, snapshots hold what they held, and no bitmap that counts as valid can lie. Each image is used on
 * after a kill. QCOW2_KILLED_IMAGES sets how many images, QCOW2_KILL_SEED the first seed.
 */
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { QCOW2_INCOMPAT_DIRTY } from '../../protocol/qcow2/header.js';
import { bundleProgram } from '../support/bundle.js';
import { expectContent, type Outcome, outcomeOf, Writers } from '../support/kill-bench.js';
import { PeerShell } from '../support/peer-shell.js';
import { expectEqual, MIB, openImage } from '../support/qcow2.js';
import { Random } from '../support/qcow2-model.js';
import {
  makeImage,
  type Parameters,
  randomNodeOptions,
  randomParameters,
} from '../support/qcow2-parameters.js';
import { type DiskState, Plan } from '../support/qcow2-plan.js';
import { testScope } from '../support/temp.js';

const IMAGES = Number(process.env.QCOW2_KILLED_IMAGES ?? 28);
const FIRST_SEED = Number(process.env.QCOW2_KILL_SEED ?? 1);
/** Kills of each image, and steps that a writer is told: more than it gets to. */
const KILLS = 8;
const STEPS = 150;
/** Images of one test. */
const BATCH = 7;

interface Bench {
  readonly dir: string;
  readonly shell: PeerShell;
  readonly writers: Writers;
  readonly random: Random;
}

interface Info {
  readonly snapshots?: readonly { readonly name: string }[];
  readonly 'format-specific': {
    readonly data: {
      readonly bitmaps?: readonly { readonly name: string; readonly flags: readonly string[] }[];
    };
  };
}

function suitable(random: Random): Parameters {
  const any = randomParameters(random);
  const size = Math.min(any.size, 2 * MIB);
  return {
    ...any,
    size,
    below: any.below.map((layer) => ({ ...layer, size: Math.min(layer.size, size) })),
  };
}

async function killOften(
  seed: number,
  { dir, shell, writers }: Omit<Bench, 'random'>,
): Promise<number> {
  const random = new Random(seed * 104_729);
  const parameters = suitable(random);
  const bench = { dir, shell, writers, random };
  const { path, content } = await makeImage(dir, parameters, bench);
  let state: DiskState = { content, snapshots: new Map(), bitmaps: [] };
  let steps = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const plan = planFor(parameters, state, { random, prefix: `k${kill}` });
    const log = join(dir, 'log');
    const nodeOptions = randomNodeOptions(random, parameters);
    const noted = await writers.killOne({ path, log, nodeOptions, steps: plan.steps }, random);
    const { clusterSize } = parameters;
    const outcome = outcomeOf(state, plan.steps, { log: noted, clusterSize });
    steps += outcome.states.length;
    try {
      state = await judge(path, outcome, bench);
    } catch (cause) {
      const last = noted.slice(-100).replaceAll('\n', ', ');
      const told = JSON.stringify(outcome.steps.slice(-12), undefined, 1);
      const given = JSON.stringify({ parameters, nodeOptions });
      throw new Error(`seed ${seed}, kill ${kill}: ${given}\n${last}\n${told}`, { cause });
    }
  }
  return steps;
}

function planFor(
  { clusterSize, version, below, dataFile, refcountBits }: Parameters,
  from: DiskState,
  { random, prefix }: { readonly random: Random; readonly prefix: string },
): Plan {
  const old = version === 2;
  const options = {
    clusterSize,
    discards: !(old && below.length > 0),
    resizes: !old,
    snapshots: dataFile === 'none' && refcountBits >= 4,
    bitmaps: !old,
  };
  const plan = new Plan(random, options, prefix);
  let state = from;
  for (let nth = 0; nth < STEPS; nth++) state = plan.next(state);
  return plan;
}

/** @returns what is in the image, to go on from */
async function judge(
  path: string,
  outcome: Outcome,
  { dir, shell, random }: Omit<Bench, 'writers'>,
): Promise<DiskState> {
  const { states } = outcome;
  const check = await shell.run('qemu-img', ['check', '-f', 'qcow2', path]);
  // 3: leaks, nothing worse. Where a mark asks for it, counts are worked out anew by who writes next.
  if (check.code !== 0 && check.code !== 3) {
    expect(await isMarked(path), check.output).toBe(true);
    await repair(path, { shell, random });
  }
  const raw = join(dir, 'raw');
  await shell.expect('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', path, raw]);
  const content = await readFile(raw);
  expectContent(content, outcome);
  const told = await shell.expect('qemu-img', ['info', '-f', 'qcow2', '--output=json', path]);
  const info = JSON.parse(told.slice(told.indexOf('{'))) as Info;
  expectBitmaps(info, outcome);
  const names = (info.snapshots ?? []).map(({ name }) => name);
  const match = states
    .slice(outcome.cutOff ? -2 : -1)
    .find((each) => String([...each.snapshots.keys()]) === String(names));
  if (match === undefined) throw new Error(`snapshots are ${names}`);
  const { snapshots } = match;
  const [name] = names;
  if (name !== undefined && random.below(3) === 0) {
    await expectMoment(path, { name, content: snapshots.get(name), dir, shell });
  }
  return { content, snapshots, bitmaps: [] };
}

async function isMarked(path: string): Promise<boolean> {
  const header = await readFile(path);
  return (header.readBigUInt64BE(72) & QCOW2_INCOMPAT_DIRTY) !== 0n;
}

async function repair(path: string, { shell, random }: Pick<Bench, 'shell' | 'random'>) {
  if (random.below(2) === 0) {
    const { node, close } = await openImage(path);
    const bytes = Buffer.alloc(1);
    await node.read(0, bytes);
    await node.write(0, bytes);
    await close();
  } else await shell.expect('qemu-io', ['-f', 'qcow2', '-c', 'read 0 1', path]);
  await shell.expectSound(path);
}

/** After a change, and until they are stored anew, all say that they are not to be believed. */
function expectBitmaps(info: Info, { steps, cutOff, finished }: Outcome): void {
  const ended = cutOff ? steps.slice(0, -1) : steps;
  const wrote = ended.some(
    (step) => step.kind === 'requests' && step.requests.some(({ kind }) => kind === 'write'),
  );
  if (!wrote || finished || steps.at(-1)?.kind === 'reopen') return;
  for (const bitmap of info['format-specific'].data.bitmaps ?? []) {
    expect(bitmap.flags, bitmap.name).toContain('in-use');
  }
}

interface Held {
  readonly name: string;
  readonly content: Buffer | undefined;
  readonly dir: string;
  readonly shell: PeerShell;
}

async function expectMoment(path: string, { name, content, dir, shell }: Held): Promise<void> {
  const copy = join(dir, 'copy');
  const raw = join(dir, 'raw');
  await copyFile(path, copy);
  const { node, graph, close } = await openImage(copy, { 'node-name': 'disk' });
  const bitmaps = [...node.bitmaps.keys()];
  await close();
  expect(graph.find('disk')).toBe(undefined);
  for (const bitmap of bitmaps)
    await shell.expect('qemu-img', ['bitmap', '--remove', copy, bitmap]);
  await shell.expect('qemu-img', ['snapshot', '-a', name, copy]);
  await shell.expect('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', copy, raw]);
  expectEqual(await readFile(raw), content ?? Buffer.alloc(0));
}

describe('a writer that is killed at any instant', () => {
  for (let first = FIRST_SEED; first < FIRST_SEED + IMAGES; first += BATCH) {
    const last = Math.min(first + BATCH, FIRST_SEED + IMAGES) - 1;
    it(`leaves images ${first} to ${last} sound, with all that was flushed`, async () => {
      const scope = testScope();
      const dir = await scope.tempDir();
      const program = join(dir, 'writer.mjs');
      await bundleProgram('qcow2-victim.ts', program);
      const shell = new PeerShell(scope);
      const writers = new Writers(scope, program);
      let steps = 0;
      for (let seed = first; seed <= last; seed++) {
        const own = join(dir, String(seed));
        await mkdir(own);
        steps += await killOften(seed, { dir: own, shell, writers });
      }
      expect(steps).toBeGreaterThan(last - first);
    }, 600_000);
  }
});
