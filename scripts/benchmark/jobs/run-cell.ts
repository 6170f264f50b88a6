// SPDX-License-Identifier: MIT
/** One job on one daemon: the dialogue, what it cost, and the proof that the copy is right. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { FioWork } from '../cells.js';
import { runFio } from '../clients.js';
import { readyMemory } from '../fair-turns.js';
import { cpuSeconds, peakMemory, run } from '../processes.js';
import type { ServerKind } from '../servers.js';
import { DATA_SHARE, type JobCell, LINK_DELAY_MS } from './cells.js';
import { connectWriter, dirtyShare, type GuestWriter } from './guests.js';
import {
  BITMAP,
  concluded,
  isReady,
  JOB_ID,
  JobDaemon,
  SOURCE_NODE,
  TARGET_NODE,
} from './job-daemon.js';
import { type Relay, startRelay } from './relay.js';
import { fillTarget, hashFile, startTarget, type Target } from './targets.js';

export interface JobSetup {
  /** Folder for images and sockets. */
  readonly dir: string;
  /** The source's image, which jobs with a writer and incremental ones change. */
  readonly image: string;
  /** Of that image, bytes. */
  readonly size: number;
}

export interface JobMeasurement {
  /** From the command to READY of a mirror, or to the end of a backup. */
  readonly seconds: number;
  /** CPU time of the daemon in that time, user and system, seconds. */
  readonly cpuSeconds: number;
  /** Highest resident memory of the daemon, bytes. */
  readonly peakMemory: number;
  /** What the daemon sent to the target, bytes, NBD headers included; absent without a relay. */
  readonly sent?: number;
  /** What the writer managed to write, bytes a second; absent without one. */
  readonly writerRate?: number;
}

/** The daemon does not offer what the cell is about. */
export class NotOffered extends Error {}

interface Running {
  readonly daemon: JobDaemon;
  readonly target: Target;
  readonly writer: GuestWriter | undefined;
  readonly relay: Relay | undefined;
}

/** What was started, ended in the opposite order whatever happens. */
class Started {
  readonly #ends: (() => Promise<void>)[] = [];

  async add<T>(starting: Promise<T>, end: (thing: T) => Promise<void>): Promise<T> {
    const thing = await starting;
    this.#ends.push(() => end(thing));
    return thing;
  }

  async end(): Promise<void> {
    for (const end of this.#ends.reverse()) await end();
  }
}

/**
 * Runs one cell and verifies its copy.
 * @param counted goes through the relay without delay, for the count of bytes
 * @throws NotOffered; Error when anything failed or the copy is not what it has to be
 */
export async function runJob(
  kind: ServerKind,
  cell: JobCell,
  setup: JobSetup,
  { counted }: { readonly counted: boolean },
): Promise<JobMeasurement> {
  const started = new Started();
  try {
    const dir = join(setup.dir, 'source');
    await mkdir(dir, { recursive: true });
    const target = await started.add(
      startTarget(cell.target, { size: setup.size, dir: join(setup.dir, 'target') }),
      (server) => server.stop(),
    );
    if (cell.job === 'incremental') await fillTarget(setup.image, target);
    const relay = await addRelay(started, cell, { serverPort: target.port, counted });
    const daemon = await started.add(JobDaemon.start(kind, { image: setup.image, dir }), (source) =>
      source.stop(),
    );
    await checkOffered(daemon, cell);
    if (cell.dirty !== undefined) {
      const bitmap = { node: SOURCE_NODE, name: BITMAP };
      await daemon.execute('block-dirty-bitmap-add', bitmap);
      await dirtyShare(daemon.uri, cell.dirty);
    }
    const load = cell.writer;
    const writer =
      load && (await started.add(connectWriter(daemon.uri, load), (connected) => connected.kill()));
    const memory = counted ? 0 : memoryOf(cell, setup);
    const running = { daemon, target, writer, relay };
    return await converse(running, cell, { image: setup.image, memory });
  } finally {
    await started.end();
  }
}

/** What a run touches anew, bytes: the target's memory of an incremental backup is there before. */
function memoryOf({ source, dirty = 1 }: JobCell, { size }: JobSetup): number {
  return size * (source === 'sparse' ? DATA_SHARE : dirty);
}

async function addRelay(
  started: Started,
  cell: JobCell,
  { serverPort, counted }: { readonly serverPort: number; readonly counted: boolean },
): Promise<Relay | undefined> {
  if (cell.link === 'loopback' && !counted) return undefined;
  const delayMs = cell.link === 'delay' ? LINK_DELAY_MS : 0;
  const starting = startRelay({ serverPort, delayMs, bytesPerSecond: cell.linkRate });
  return started.add(starting, (link) => link.stop());
}

async function checkOffered(daemon: JobDaemon, { copyMode }: JobCell): Promise<void> {
  if (copyMode === undefined) return;
  if (await daemon.knows('blockdev-mirror', 'copy-mode', copyMode)) return;
  throw new NotOffered(`copy-mode ${copyMode} is not in its schema`);
}

/** Makes the node of a target that listens on a port of this machine. */
export async function addTarget(daemon: JobDaemon, port: number): Promise<void> {
  await daemon.execute('blockdev-add', {
    driver: 'nbd',
    'node-name': TARGET_NODE,
    server: { type: 'inet', host: '127.0.0.1', port: `${port}` },
    export: 'disk',
  });
}

/** What both daemons are told; the writer writes from the job's start to its end. */
async function converse(
  { daemon, target, writer, relay }: Running,
  cell: JobCell,
  { image, memory }: Pick<JobSetup, 'image'> & { readonly memory: number },
): Promise<JobMeasurement> {
  await addTarget(daemon, relay?.port ?? target.port);
  // This also brings the image into the page cache, for everybody.
  const before = await hashFile(image);
  await readyMemory(memory);
  const sentBefore = await relay?.bytes();
  const cpuBefore = cpuSeconds(daemon.server.pid);
  const milliseconds = await daemon.until(
    cell.job === 'mirror' ? 'blockdev-mirror' : 'blockdev-backup',
    jobArguments(cell),
    cell.job === 'mirror' ? isReady : concluded,
    () => writer?.begin(),
  );
  const cpu = cpuSeconds(daemon.server.pid) - cpuBefore;
  const sentAfter = await relay?.bytes();
  const writerRate = await writer?.end();
  if (cell.job === 'mirror') await daemon.until('job-complete', { id: JOB_ID }, concluded);
  await daemon.checkJob();
  const peak = peakMemory(daemon.server.pid);
  const expected = cell.job === 'mirror' ? await hashFile(image) : before;
  const found = await target.hash();
  if (found !== expected) throw new Error(`the copy differs: ${found} instead of ${expected}`);
  return {
    seconds: milliseconds / 1000,
    cpuSeconds: cpu,
    peakMemory: peak,
    ...(sentBefore && sentAfter ? { sent: sentAfter.toServer - sentBefore.toServer } : {}),
    ...(writerRate === undefined ? {} : { writerRate }),
  };
}

function jobArguments({ job, copyMode }: Pick<JobCell, 'job' | 'copyMode'>) {
  const common = {
    'job-id': JOB_ID,
    device: SOURCE_NODE,
    target: TARGET_NODE,
    'auto-dismiss': false,
  };
  if (job === 'incremental') return { ...common, sync: 'incremental', bitmap: BITMAP };
  return { ...common, sync: 'full', ...(copyMode ? { 'copy-mode': copyMode } : {}) };
}

/** Copies with nbdcopy, from the file itself. @returns seconds */
export async function timeNbdcopy(targetName: string, setup: JobSetup): Promise<number> {
  const target = await startTarget(targetName, {
    size: setup.size,
    dir: join(setup.dir, 'target'),
  });
  try {
    const expected = await hashFile(setup.image);
    await readyMemory(setup.size);
    const begin = performance.now();
    await run('nbdcopy', [setup.image, target.uri]);
    const seconds = (performance.now() - begin) / 1000;
    if ((await target.hash()) !== expected) throw new Error('the copy of nbdcopy differs');
    return seconds;
  } finally {
    await target.stop();
  }
}

export interface ReadLatency {
  /** 99th percentile of reads at depth 1 while nothing else happens, microseconds. */
  readonly idleUs: number;
  /** The same while a mirror runs. */
  readonly mirroringUs: number;
}

const SMALL_READS: FioWork = {
  tool: 'fio',
  rw: 'randread',
  blockSize: 4096,
  depth: 1,
  connections: 1,
};

/** A client reads from the source, first alone, then while mirrors of it run one after the other. */
export async function measureLatency(
  kind: ServerKind,
  setup: JobSetup & { readonly seconds: number },
): Promise<ReadLatency> {
  const started = new Started();
  try {
    const dir = join(setup.dir, 'source');
    await mkdir(dir, { recursive: true });
    const target = await started.add(
      startTarget('nbdkit memory', { size: setup.size, dir: join(setup.dir, 'target') }),
      (server) => server.stop(),
    );
    const daemon = await started.add(JobDaemon.start(kind, { image: setup.image, dir }), (source) =>
      source.stop(),
    );
    const read = async (): Promise<number> => {
      const options = { seconds: setup.seconds, size: setup.size, dir };
      return (await runFio(daemon.uri, SMALL_READS, options)).p99Us;
    };
    await read(); // warms up
    const idleUs = await read();
    await addTarget(daemon, target.port);
    await readyMemory(setup.size);
    let wanted = true;
    const mirroring = (async () => {
      while (wanted) {
        await daemon.until('blockdev-mirror', jobArguments({ job: 'mirror' }), isReady);
        await daemon.until('block-job-cancel', { device: JOB_ID }, concluded);
        await daemon.execute('job-dismiss', { id: JOB_ID });
      }
    })();
    const mirroringUs = await Promise.race([read(), mirroring.then(() => Number.NaN)]);
    wanted = false;
    await mirroring;
    return { idleUs, mirroringUs };
  } finally {
    await started.end();
  }
}
