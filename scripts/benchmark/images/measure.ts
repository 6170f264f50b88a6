// SPDX-License-Identifier: MIT
/** One measurement of the benchmark of images. */
import { copyFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runFio } from '../clients.js';
import { JobDaemon } from '../jobs/job-daemon.js';
import { type Measurement, syncFile } from '../measure.js';
import { cpuSeconds, cpuSecondsOfEnded, forgetPeakMemory, peakMemory, run } from '../processes.js';
import { EXPORT_NAME, type ServerKind, type StorageDaemonKind, startServer } from '../servers.js';
import { type ConvertCell, HUGE_SIZE, type ImageCell, partsOf, sizeOfKind } from './cells.js';
import { type ImageSet, imagePath, rawPath, sparsePath } from './make-images.js';

/** Long enough for a just-in-time compiler to begin; the C servers get it too. */
const WARM_UP_SECONDS = 0.5;
const IMG = fileURLToPath(new URL('../../../src/cli/launch.cjs', import.meta.url));

/** Loads one server with one cell. @throws Error when a request failed or the image is damaged */
export async function measureCell(
  kind: ServerKind,
  cell: ImageCell,
  set: ImageSet & { readonly seconds: number },
): Promise<Measurement> {
  let image = imagePath(set, cell.image);
  if (cell.allocates) {
    // Beside the original, where the names of backing files hold too.
    image = join(set.dir, 'scratch.qcow2');
    await copyFile(imagePath(set, cell.image), image);
  }
  await syncFile(image);
  const format = cell.image === 'raw' ? 'raw' : 'qcow2';
  const where = { images: [image], format, transport: 'unix', dir: set.dir } as const;
  const server = await startServer(kind, where);
  let measured: Measurement;
  try {
    measured = await load(server.uri(EXPORT_NAME), cell, { ...set, pid: server.pid });
  } finally {
    await server.stop();
  }
  if (cell.allocates) {
    await run('qemu-img', ['check', '-q', '-f', 'qcow2', image]);
    await rm(image);
  }
  return measured;
}

async function load(
  uri: string,
  cell: ImageCell,
  { pid, seconds, dir, ...set }: ImageSet & { readonly seconds: number; readonly pid: number },
): Promise<Measurement> {
  const { warmUp, measured } = partsOf(cell, sizeOfKind(cell.image, set.size));
  await runFio(uri, warmUp.work, { seconds: WARM_UP_SECONDS, dir, size: warmUp.size });
  const before = cpuSeconds(pid);
  const result = await runFio(uri, measured.work, { seconds, dir, size: measured.size });
  const cpu = cpuSeconds(pid) - before;
  const scale = cell.unit === 'bytes' ? cell.work.blockSize : 1;
  return {
    rate: result.requestsPerSecond * scale,
    cpuPerUnit: cpu / (result.requests * scale),
    peakMemory: peakMemory(pid),
  };
}

/** The programs that convert, with the words before `convert`. */
export const CONVERTERS = [
  { name: 'diskferry img', program: process.execPath, args: [IMG, 'img'] },
  { name: 'qemu-img', program: 'qemu-img', args: [] },
] as const;
export type Converter = (typeof CONVERTERS)[number];

export interface Timed {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

/** The source of a conversion; made from the raw one where it is not there yet. */
async function convertSource({ source, from }: ConvertCell, set: ImageSet): Promise<string> {
  const raw = source === 'full' ? rawPath(set) : sparsePath(set);
  if (from === 'raw') return raw;
  const image = join(set.dir, `convert-${source}.qcow2`);
  const there = await stat(image).catch(() => undefined);
  if (there === undefined) {
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, image]);
    await syncFile(image);
  }
  return image;
}

/** Converts once. @throws Error when it fails or the result differs */
export async function measureConvert(
  { program, args }: Converter,
  cell: ConvertCell,
  set: ImageSet,
): Promise<Timed> {
  const source = await convertSource(cell, set);
  const target = join(set.dir, `converted.${cell.to}`);
  await run('dd', [`if=${source}`, 'of=/dev/null', 'bs=1M', 'status=none']);
  const words = ['convert', '-f', cell.from, '-O', cell.to, source, target];
  try {
    const cpu = cpuSecondsOfEnded();
    const begin = performance.now();
    await run(program, [...args, ...words]);
    const seconds = (performance.now() - begin) / 1000;
    const used = cpuSecondsOfEnded() - cpu;
    await run('qemu-img', ['compare', '-q', '-f', cell.from, '-F', cell.to, source, target]);
    if (cell.to === 'qcow2') await run('qemu-img', ['check', '-q', '-f', 'qcow2', target]);
    return { seconds, cpuSeconds: used };
  } finally {
    await rm(target, { force: true });
  }
}

export interface Opened {
  readonly seconds: number;
  /** By how much the highest resident memory of the daemon has grown, bytes. */
  readonly memory: number;
}

/** Opens a huge image in a daemon that is up. */
export async function measureOpen(
  kind: StorageDaemonKind,
  { clusterSize }: { readonly clusterSize: number },
  set: ImageSet,
): Promise<Opened> {
  const huge = join(set.dir, 'huge.qcow2');
  const options = ['-o', `cluster_size=${clusterSize}`];
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, huge, HUGE_SIZE]);
  const daemon = await JobDaemon.start(kind, { image: rawPath(set), dir: set.dir });
  try {
    forgetPeakMemory(daemon.server.pid);
    const before = peakMemory(daemon.server.pid);
    const begin = performance.now();
    await daemon.execute('blockdev-add', {
      driver: 'qcow2',
      'node-name': 'huge',
      file: { driver: 'file', filename: huge },
    });
    const seconds = (performance.now() - begin) / 1000;
    return { seconds, memory: peakMemory(daemon.server.pid) - before };
  } finally {
    await daemon.stop();
    await rm(huge, { force: true });
  }
}
