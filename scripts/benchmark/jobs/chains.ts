// SPDX-License-Identifier: MIT
/** Jobs on a chain of qcow2 images: what is done, what it cost, and the proof that nothing was lost. */
import { copyFile, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readyMemory } from '../fair-turns.js';
import { makeKind, makeLayers, rawPath } from '../images/make-images.js';
import { cpuSeconds, peakMemory, run } from '../processes.js';
import { EXPORT_NAME, type ServerKind, type StorageDaemonKind } from '../servers.js';
import { CHAIN_DEPTH, type ChainJob } from './cells.js';
import { concluded, isReady, JOB_ID, JobDaemon, TARGET_NODE } from './job-daemon.js';
import type { JobMeasurement } from './run-cell.js';

/** The layers from which every run gets copies. */
export class ChainSource {
  private constructor(
    readonly dir: string,
    readonly size: number,
    private readonly originals: readonly string[],
    /** The layers as a run uses them, the lowest first. */
    readonly layers: readonly string[],
    /** What the chain reads as, raw. */
    readonly flat: string,
  ) {}

  static async make(dir: string, size: number): Promise<ChainSource> {
    await mkdir(dir, { recursive: true });
    const set = { dir, size };
    await makeKind(set, 'raw');
    const levels = Array.from({ length: CHAIN_DEPTH }, (_, level) => level);
    const layers = levels.map((level) => join(dir, `layer-${level}.qcow2`));
    await makeLayers(set, layers, { spread: true });
    const flat = join(dir, 'flat.img');
    await run('qemu-img', ['convert', '-O', 'raw', layers.at(-1) ?? '', flat]);
    await rm(rawPath(set));
    const originals = layers.map((layer) => `${layer}.original`);
    for (const [level, layer] of layers.entries()) await copyFile(layer, originals[level] ?? '');
    return new ChainSource(dir, size, originals, layers, flat);
  }

  /** Puts the layers back as they were; they are in the page cache afterwards. */
  async restore(): Promise<void> {
    for (const [level, layer] of this.layers.entries()) {
      await copyFile(this.originals[level] ?? '', layer);
    }
  }
}

const nodeOf = (level: number): string =>
  level === CHAIN_DEPTH - 1 ? EXPORT_NAME : `layer-${level}`;

/** Names every node, so that none of them passes on flushes, and the same words go to both daemons. */
function onChain(kind: StorageDaemonKind, { layers }: ChainSource): ServerKind {
  const nodes = layers.flatMap((layer, level) => {
    const below = level === 0 ? '' : `,backing=${nodeOf(level - 1)}`;
    const file = `file-${level}`;
    return [
      '--blockdev',
      `driver=file,node-name=${file},filename=${layer},cache.no-flush=on,discard=unmap`,
      '--blockdev',
      `driver=qcow2,node-name=${nodeOf(level)},file=${file}${below},cache.no-flush=on,discard=unmap`,
    ];
  });
  return {
    ...kind,
    command(_images, endpoint) {
      if (!('path' in endpoint)) throw new Error('chains are served over a UNIX socket');
      const server = ['--nbd-server', `addr.type=unix,addr.path=${endpoint.path}`];
      const exported = `type=nbd,id=export,node-name=${EXPORT_NAME},name=${EXPORT_NAME}`;
      return kind.invoke([...nodes, ...server, '--export', exported]);
    },
  };
}

/** Makes the target of a copy, a new file. @returns its path */
async function addTarget(
  daemon: JobDaemon,
  { dir, size }: ChainSource,
  format: 'raw' | 'qcow2',
): Promise<string> {
  const path = join(dir, `target.${format}`);
  await run('qemu-img', ['create', '-q', '-f', format, path, `${size}`]);
  await daemon.execute('blockdev-add', {
    driver: format,
    'node-name': TARGET_NODE,
    cache: { 'no-flush': true },
    file: { driver: 'file', filename: path, cache: { 'no-flush': true } },
  });
  return path;
}

interface Dialogue {
  readonly command: string;
  readonly args: Readonly<Record<string, string | boolean>>;
  /** It is READY first, and then told to complete. */
  readonly completed: boolean;
  /** File of what it makes. */
  readonly result: string;
  readonly format: 'raw' | 'qcow2';
}

async function prepare(daemon: JobDaemon, job: ChainJob, source: ChainSource): Promise<Dialogue> {
  const common = { 'job-id': JOB_ID, device: EXPORT_NAME, 'auto-dismiss': false };
  const [base = '', , top = ''] = source.layers;
  const qcow2 = { completed: false, format: 'qcow2' } as const;
  switch (job) {
    case 'stream':
      return { command: 'block-stream', args: common, result: top, ...qcow2 };
    case 'commit': {
      const args = { ...common, 'top-node': nodeOf(1), 'base-node': nodeOf(0) };
      return { command: 'block-commit', args, result: top, ...qcow2 };
    }
    case 'active commit':
      return { command: 'block-commit', args: common, result: base, ...qcow2, completed: true };
    case 'mirror': {
      const result = await addTarget(daemon, source, 'raw');
      const args = { ...common, target: TARGET_NODE, sync: 'full' };
      return { command: 'blockdev-mirror', args, result, completed: true, format: 'raw' };
    }
    case 'backup to qcow2': {
      const result = await addTarget(daemon, source, 'qcow2');
      const args = { ...common, target: TARGET_NODE, sync: 'full' };
      return { command: 'blockdev-backup', args, result, ...qcow2 };
    }
  }
}

/** Runs one job on fresh layers. @throws Error when it failed or what it made reads otherwise */
export async function runChainJob(
  kind: StorageDaemonKind,
  job: ChainJob,
  source: ChainSource,
): Promise<JobMeasurement> {
  await source.restore();
  const { dir } = source;
  const image = source.layers.at(-1) ?? '';
  const daemon = await JobDaemon.start(onChain(kind, source), { image, dir });
  let measured: JobMeasurement;
  let dialogue: Dialogue;
  try {
    dialogue = await prepare(daemon, job, source);
    await readyMemory(source.size);
    measured = await converse(daemon, dialogue);
  } finally {
    await daemon.stop();
  }
  const { result, format } = dialogue;
  await run('qemu-img', ['compare', '-q', '-f', format, '-F', 'raw', result, source.flat]);
  if (format === 'qcow2') await run('qemu-img', ['check', '-q', '-f', format, result]);
  if (!source.layers.includes(result)) await rm(result);
  return measured;
}

async function converse(
  daemon: JobDaemon,
  { command, args, completed }: Dialogue,
): Promise<JobMeasurement> {
  const { pid } = daemon.server;
  const before = cpuSeconds(pid);
  let milliseconds = await daemon.until(command, args, completed ? isReady : concluded);
  if (completed) milliseconds += await daemon.until('job-complete', { id: JOB_ID }, concluded);
  const cpu = cpuSeconds(pid) - before;
  await daemon.checkJob();
  return { seconds: milliseconds / 1000, cpuSeconds: cpu, peakMemory: peakMemory(pid) };
}
