// SPDX-License-Identifier: MIT
/** `scripts/bench jobs`: the same dialogue on both daemons, to the same targets, in one run. */
import { open, readFile, rm } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { MIB } from '../cells.js';
import { checkComplete, entryOf, inTempFolder, publish, say } from '../collect.js';
import { inTurn } from '../fair-turns.js';
import { makeImage } from '../measure.js';
import { STORAGE_DAEMONS, versionOf } from '../servers.js';
import {
  CHAIN_CELLS,
  type ChainCell,
  DATA_SHARE,
  JOB_CELLS,
  type JobCell,
  LATENCY_CELL,
  NBDCOPY_TARGETS,
  nbdcopyCell,
} from './cells.js';
import { ChainSource, runChainJob } from './chains.js';
import { TooLate } from './job-daemon.js';
import { type Collected, renderJobsReport, renderSummary } from './report.js';
import {
  type JobMeasurement,
  measureLatency,
  NotOffered,
  runJob,
  timeNbdcopy,
} from './run-cell.js';
import { JOB_DAEMONS } from './targets.js';

export interface JobsOptions {
  readonly rounds: number;
  /** Of the disk, bytes. */
  readonly size: number;
  /** Reads for a short time where a time has to be chosen. */
  readonly quick: boolean;
  /** Only cells whose name contains this. */
  readonly only: string;
  /** File for the report; standard output when absent. */
  readonly out: string | undefined;
  /** File with the markers between which the summary goes. */
  readonly readme: string | undefined;
  /** Folder for images and sockets; a fresh one in the system's temporary folder when absent. */
  readonly parentDir: string | undefined;
}

/** Data of the sparse source comes in pieces of this size, bytes. */
const DATA_PIECE = MIB;
const LATENCY_SECONDS = 2;
const LATENCY_SECONDS_QUICK = 0.5;

/** Runs the benchmark and writes its report. @throws Error when a cell failed or a copy differed */
export async function benchJobs(options: JobsOptions): Promise<void> {
  await inTempFolder(options.parentDir, async (dir) => {
    const run = new Run(options, dir);
    const versions = await Promise.all(JOB_DAEMONS.map(versionOf));
    await run.all();
    const facts = { ...options, versions, kernel: release(), ...run.collected };
    const [report, summary] = [renderJobsReport(facts), renderSummary(facts)];
    await publish(options, 'bench:jobs', { report, summary });
    checkComplete(run.collected.failures);
  });
}

class Run {
  readonly collected: Collected = {
    cells: new Map(),
    sent: new Map(),
    nbdcopy: new Map(),
    latency: new Map(),
    skipped: [],
    failures: [],
  };

  #chain: ChainSource | undefined;
  /** Cells so far, in this round: their daemons take turns at being first. */
  #turn = 0;

  constructor(
    private readonly options: JobsOptions,
    private readonly dir: string,
  ) {}

  async all(): Promise<void> {
    const cells = JOB_CELLS.filter(({ name }) => this.#wanted(name));
    await this.#makeImages(cells);
    for (let round = 1; round <= this.options.rounds; round += 1) {
      say(`round ${round} of ${this.options.rounds}`);
      this.#turn = round - 1;
      for (const target of NBDCOPY_TARGETS) await this.#nbdcopy(target);
      for (const cell of cells) await this.#cell(cell, { first: round === 1 });
      await this.#latency();
      await this.#chains();
    }
  }

  async #chains(): Promise<void> {
    const cells = CHAIN_CELLS.filter(({ name }) => this.#wanted(name));
    if (cells.length === 0) return;
    this.#chain ??= await ChainSource.make(join(this.dir, 'chain'), this.options.size);
    for (const cell of cells) await this.#chainCell(cell, this.#chain);
  }

  async #chainCell(cell: ChainCell, source: ChainSource): Promise<void> {
    const shown: string[] = [];
    const results = entryOf(this.collected.cells, cell.name, () => ({ cell, rounds: new Map() }));
    for (const kind of inTurn(STORAGE_DAEMONS, this.#turn++)) {
      await this.#attempt(`${kind.name}, ${cell.name}`, async () => {
        const measured = await runChainJob(kind, cell.job, source);
        entryOf(results.rounds, kind.name, (): JobMeasurement[] => []).push(measured);
        shown.push(`${kind.name} ${measured.seconds.toFixed(3)} s`);
      });
    }
    say(`  ${cell.name}: ${shown.join(', ')}`);
  }

  #wanted(name: string): boolean {
    return name.includes(this.options.only);
  }

  /** The image of a source; cells of another size have one of their own. */
  #source({ source, sizeShare = 1 }: Pick<JobCell, 'source' | 'sizeShare'>) {
    const size = Math.max(MIB, Math.floor((this.options.size * sizeShare) / MIB) * MIB);
    return { dir: this.dir, size, image: join(this.dir, `${source}-${size}.raw`) };
  }

  async #makeImages(cells: readonly JobCell[]): Promise<void> {
    const made = new Set<string>();
    for (const cell of [{ source: 'random' } as const, ...cells]) {
      const { image, size } = this.#source(cell);
      if (made.has(image)) continue;
      made.add(image);
      if (cell.source === 'random') await makeImage(image, { size });
      else await makeSparseImage(image, size);
    }
  }

  async #cell(cell: JobCell, { first }: { readonly first: boolean }): Promise<void> {
    const shown: string[] = [];
    const results = entryOf(this.collected.cells, cell.name, () => ({ cell, rounds: new Map() }));
    for (const kind of inTurn(JOB_DAEMONS, this.#turn++)) {
      await this.#attempt(`${kind.name}, ${cell.name}`, async () => {
        const setup = this.#source(cell);
        const measured = await runJob(kind, cell, setup, { counted: false });
        entryOf(results.rounds, kind.name, (): JobMeasurement[] => []).push(measured);
        shown.push(`${kind.name} ${measured.seconds.toFixed(3)} s`);
        if (!first) return;
        const { sent } =
          measured.sent === undefined
            ? await runJob(kind, cell, setup, { counted: true })
            : measured;
        if (sent !== undefined) {
          entryOf(this.collected.sent, cell.name, () => new Map()).set(kind.name, sent);
        }
      });
    }
    say(`  ${cell.name}: ${shown.join(', ')}`);
  }

  async #nbdcopy(target: string): Promise<void> {
    const name = nbdcopyCell(target);
    if (!this.#wanted(name)) return;
    await this.#attempt(name, async () => {
      const seconds = await timeNbdcopy(target, this.#source({ source: 'random' }));
      entryOf(this.collected.nbdcopy, target, (): number[] => []).push(seconds);
      say(`  ${name}: ${seconds.toFixed(3)} s`);
    });
  }

  async #latency(): Promise<void> {
    if (!this.#wanted(LATENCY_CELL)) return;
    const seconds = this.options.quick ? LATENCY_SECONDS_QUICK : LATENCY_SECONDS;
    for (const kind of inTurn(JOB_DAEMONS, this.#turn++)) {
      await this.#attempt(`${kind.name}, ${LATENCY_CELL}`, async () => {
        const found = await measureLatency(kind, {
          ...this.#source({ source: 'random' }),
          seconds,
        });
        entryOf(this.collected.latency, kind.name, (): (typeof found)[] => []).push(found);
        say(`  ${LATENCY_CELL}: ${kind.name} ${found.idleUs} and ${found.mirroringUs} µs`);
      });
    }
  }

  /** Runs one measurement; one that fails is noted, so that an hour's run is not lost. */
  async #attempt(what: string, action: () => Promise<void>): Promise<void> {
    const { skipped, failures } = this.collected;
    try {
      await action();
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      const told = `${what}: ${text.split('\n')[0]}`;
      // What the peer does not reach is a result; what we do not reach is a failure.
      const result = error instanceof TooLate && what.startsWith('qemu-storage-daemon, ');
      if (error instanceof NotOffered || result) {
        if (!skipped.includes(told)) skipped.push(told);
        return;
      }
      say(`${what}: ${text}`);
      failures.push(told);
    }
  }
}

/** Data in every tenth piece, and holes between. */
async function makeSparseImage(path: string, size: number): Promise<void> {
  const data = `${path}.data`;
  await makeImage(data, { size: DATA_PIECE });
  const piece = await readFile(data);
  await rm(data);
  const file = await open(path, 'w');
  try {
    await file.truncate(size);
    for (let at = 0; at < size; at += DATA_PIECE / DATA_SHARE) {
      await file.write(piece, 0, Math.min(piece.length, size - at), at);
    }
    await file.sync();
  } finally {
    await file.close();
  }
}
