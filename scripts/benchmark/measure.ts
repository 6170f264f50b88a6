// SPDX-License-Identifier: MIT
/** One measurement: a fresh server, a warm-up, the cell, and what it cost the server. */
import { randomFillSync } from 'node:crypto';
import { writeSync } from 'node:fs';
import { copyFile, mkdir, open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Cell, type FioWork, IMAGE_SIZE, KIB, MIB, ZEROES } from './cells.js';
import { runFio, runPass } from './clients.js';
import { cpuSeconds, peakMemory, run } from './processes.js';
import { EXPORT_NAME, type ServerKind, startServer, type Transport } from './servers.js';

export interface Setup {
  /** Folder for sockets and reports. */
  readonly dir: string;
  /** The image that every server serves, one after the other; in the page cache. */
  readonly image: string;
  /** Seconds of one cell. */
  readonly seconds: number;
}

export interface Measurement {
  /** Requests or bytes a second, as the cell counts. */
  readonly rate: number;
  /** CPU time of the server, seconds for each request or byte. */
  readonly cpuPerUnit: number;
  /** Highest resident memory of the server, bytes. */
  readonly peakMemory: number;
}

/** Long enough for a just-in-time compiler to settle; the C servers get it too. */
const WARM_UP_SECONDS = 0.6;
const PAGE_SIZE = 4 * KIB;
const GREETING_SAMPLES = 5;
const DROP_INTERVAL_MS = 250;
const FAIRNESS_SECONDS = 4;

/**
 * Fills a file with data that is neither zeroes nor compressible, and puts it onto the disk. It is
 * written page by page, so that the page cache holds single pages: where it holds large folios,
 * ext4 takes 60 us to write 4 KiB, whoever serves the file, and the cells would show only that.
 */
export async function makeImage(path: string, { size = IMAGE_SIZE } = {}): Promise<void> {
  const file = await open(path, 'w');
  try {
    const block = Buffer.allocUnsafe(MIB);
    for (let at = 0; at < size; at += PAGE_SIZE) {
      const inBlock = at % block.length;
      if (inBlock === 0) randomFillSync(block);
      writeSync(file.fd, block, inBlock, PAGE_SIZE, at);
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Puts a file onto the disk, so that the kernel has none of its pages left to write back. */
export async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Every server finds the image in the cache, and nothing of the server before it on its way. */
async function settle(image: string): Promise<void> {
  await syncFile(image);
  await run('dd', [`if=${image}`, 'of=/dev/null', 'bs=1M', 'status=none']);
}

/** Measures one cell on one server, which is started for it and ended after it. */
export async function measure(
  kind: ServerKind,
  transport: Transport,
  cell: Cell,
  setup: Setup,
): Promise<Measurement> {
  let image = setup.image;
  if (cell.destroys) {
    image = join(setup.dir, 'scratch.raw');
    await copyFile(setup.image, image);
  }
  await settle(image);
  const server = await startServer(kind, { images: [image], transport, dir: setup.dir });
  try {
    const uri = server.uri(EXPORT_NAME);
    await warmUp(uri, cell, setup);
    const before = cpuSeconds(server.pid);
    const { rate, units } = await load(uri, cell, setup);
    const cpu = cpuSeconds(server.pid) - before;
    return { rate, cpuPerUnit: cpu / units, peakMemory: peakMemory(server.pid) };
  } finally {
    await server.stop();
  }
}

async function warmUp(uri: string, cell: Cell, setup: Setup): Promise<void> {
  // What destroys its image is warmed up with reads, so that every byte is still there.
  const reads: FioWork = { tool: 'fio', rw: 'randread', ...ZEROES, connections: 1 };
  const work = cell.work.tool === 'fio' && !cell.destroys ? cell.work : reads;
  await runFio(uri, work, { seconds: WARM_UP_SECONDS, dir: setup.dir });
}

async function load(uri: string, cell: Cell, setup: Setup) {
  if (cell.work.tool === 'fio') {
    const { blockSize } = cell.work;
    const result = await runFio(uri, cell.work, setup);
    const scale = cell.unit === 'bytes' ? blockSize : 1;
    return { rate: result.requestsPerSecond * scale, units: result.requests * scale };
  }
  const seconds = await runPass(uri, cell.work);
  const units = cell.unit === 'bytes' ? IMAGE_SIZE : IMAGE_SIZE / ZEROES.blockSize;
  return { rate: units / seconds, units };
}

/** Milliseconds from starting the process to the greeting, once for each sample. */
export async function greetingTimes(kind: ServerKind, setup: Setup): Promise<number[]> {
  const times: number[] = [];
  for (let sample = 0; sample < GREETING_SAMPLES; sample += 1) {
    const options = { images: [setup.image], transport: 'unix', dir: setup.dir } as const;
    const server = await startServer(kind, options);
    times.push(server.greetingMs);
    await server.stop();
  }
  return times;
}

export interface Fairness {
  /** 99th percentile of reads of a warm export while nobody else is there, microseconds. */
  readonly aloneUs: number;
  /** The same while another client reads a cold export of the same server. */
  readonly besideColdUs: number;
}

/**
 * Reads a warm export, alone and beside a client that reads a file whose pages are dropped from
 * the cache over and over.
 */
export async function measureFairness(
  kind: ServerKind,
  transport: Transport,
  setup: Setup & { readonly coldImage: string },
): Promise<Fairness> {
  const images = [setup.image, setup.coldImage];
  const server = await startServer(kind, { images, transport, dir: setup.dir });
  try {
    const [warm, cold] = images.map((path) => server.uri(basename(path)));
    const small = { tool: 'fio', rw: 'randread', blockSize: 4 * KIB, connections: 1 } as const;
    const readWarm = () =>
      runFio(warm ?? '', { ...small, depth: 1 }, { seconds: FAIRNESS_SECONDS, dir: setup.dir });
    await readWarm();
    const alone = await readWarm();
    const coldDir = join(setup.dir, 'cold');
    await mkdir(coldDir, { recursive: true });
    const dropping = keepCold(setup.coldImage);
    try {
      const reading = { seconds: FAIRNESS_SECONDS + 1, dir: coldDir };
      const [beside] = await Promise.all([
        readWarm(),
        runFio(cold ?? '', { ...small, depth: 16 }, reading),
      ]);
      return { aloneUs: alone.p99Us, besideColdUs: beside.p99Us };
    } finally {
      await dropping.stop();
    }
  } finally {
    await server.stop();
  }
}

/** Drops a file's clean pages again and again; dd does it with posix_fadvise, without root. */
function keepCold(path: string): { stop(): Promise<void> } {
  let wanted = true;
  const loop = (async () => {
    while (wanted) {
      await run('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none']);
      await sleep(DROP_INTERVAL_MS);
    }
  })();
  loop.catch(() => {}); // stop() reports it
  return {
    async stop() {
      wanted = false;
      await loop;
    },
  };
}
