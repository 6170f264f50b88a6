// SPDX-License-Identifier: MIT
/** The clients that load a server: fio, nbdsh, nbdcopy and qemu-img. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type FioWork, IMAGE_SIZE, type PassWork, ZEROES } from './cells.js';
import { run } from './processes.js';

export interface FioOptions {
  /** How long to load the server; not used by work that goes once over the image. */
  readonly seconds: number;
  /** Folder for the report of fio. */
  readonly dir: string;
  /** How much of the export is used, bytes; the size of the serving benchmark's image when absent. */
  readonly size?: number;
}

export interface FioResult {
  readonly requestsPerSecond: number;
  readonly requests: number;
  /** 99th percentile of the time from submission to completion, microseconds. */
  readonly p99Us: number;
}

/** What is read of fio's JSON report. */
interface FioDirection {
  readonly iops: number;
  readonly total_ios: number;
  readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> };
}
type FioReport = {
  readonly jobs: readonly {
    readonly error: number;
    read: FioDirection;
    write: FioDirection;
    trim: FioDirection;
  }[];
};

/** Loads a server with fio's own NBD client. @throws Error when a request failed */
export async function runFio(uri: string, work: FioWork, options: FioOptions): Promise<FioResult> {
  const report = join(options.dir, 'fio.json');
  const duration =
    work.once || work.ioSize !== undefined
      ? []
      : ['--time_based', `--runtime=${Math.round(options.seconds * 1000)}ms`];
  const limit = work.ioSize === undefined ? [] : [`--io_size=${work.ioSize}`];
  const flush = work.flushEvery === undefined ? [] : [`--fsync=${work.flushEvery}`];
  await run('fio', [
    '--name=cell',
    '--ioengine=nbd',
    `--uri=${uri}`,
    `--rw=${work.rw}`,
    '--rwmixread=70',
    `--bs=${work.blockSize}`,
    `--iodepth=${work.depth}`,
    `--numjobs=${work.connections}`,
    `--offset=${work.offset ?? 0}`,
    `--size=${options.size ?? IMAGE_SIZE}`,
    '--thread',
    '--group_reporting',
    '--norandommap',
    ...duration,
    ...limit,
    ...flush,
    '--output-format=json',
    `--output=${report}`,
  ]);
  const text = await readFile(report, 'utf8');
  // Its NBD client writes a line for each connection in front.
  const [job] = (JSON.parse(text.slice(text.indexOf('{'))) as FioReport).jobs;
  if (job === undefined || job.error !== 0) throw new Error(`fio on ${uri}: error ${job?.error}`);
  const directions = [job.read, job.write, job.trim];
  const sum = (of: (direction: FioDirection) => number): number =>
    directions.reduce((total, direction) => total + of(direction), 0);
  return {
    requestsPerSecond: sum((direction) => direction.iops),
    requests: sum((direction) => direction.total_ios),
    p99Us: Math.max(...directions.map((d) => d.clat_ns.percentile?.['99.000000'] ?? 0)) / 1000,
  };
}

/** fio's NBD client has no write zeroes, so libnbd's shell sends them, and measures in itself. */
const ZEROES_SCRIPT = `
import time
errors = []
def completed(error):
    if error.value != 0:
        errors.append(error.value)
    return 1
size = h.get_size()
begin = time.monotonic()
for offset in range(0, size, ${ZEROES.blockSize}):
    while h.aio_in_flight() >= ${ZEROES.depth}:
        h.poll(-1)
    h.aio_zero(${ZEROES.blockSize}, offset, completion=completed)
while h.aio_in_flight() > 0:
    h.poll(-1)
if errors:
    raise SystemExit(f'writing zeroes failed with errors {set(errors)}')
print(time.monotonic() - begin)
`;

/** One pass over the whole export. @returns seconds that it took */
export async function runPass(uri: string, { tool }: PassWork): Promise<number> {
  if (tool === 'nbdsh-zeroes') return Number(await run('nbdsh', ['-u', uri, '-c', ZEROES_SCRIPT]));
  const begin = performance.now();
  if (tool === 'nbdcopy') {
    await run('nbdcopy', [uri, 'null:']);
  } else {
    // Into nowhere, so that only the server is measured, not the disk of the copy.
    const target = `driver=null-co,size=${IMAGE_SIZE}`;
    await run('qemu-img', ['convert', '-f', 'raw', '-n', '--target-image-opts', uri, target]);
  }
  return (performance.now() - begin) / 1000;
}
