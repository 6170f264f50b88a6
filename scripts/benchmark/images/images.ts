// SPDX-License-Identifier: MIT
/** `scripts/bench images`: qcow2 images by every server in turn, conversions, and opening a huge image. */
import { release } from 'node:os';
import { attempt, checkComplete, entryOf, inTempFolder, publish, say } from '../collect.js';
import type { Measurement } from '../measure.js';
import { SERVERS, type ServerKind, STORAGE_DAEMONS, versionOf } from '../servers.js';
import {
  CONVERT_CELLS,
  type ConvertCell,
  IMAGE_CELLS,
  type ImageCell,
  OPEN_CELLS,
} from './cells.js';
import { type ImageSet, makeKind, makeSparse } from './make-images.js';
import { CONVERTERS, measureCell, measureConvert, measureOpen } from './measure.js';
import { type Collected, renderImagesReport, renderSummary } from './report.js';

export interface ImagesOptions {
  readonly rounds: number;
  readonly secondsPerCell: number;
  /** Virtual size of the images, bytes. */
  readonly size: number;
  /** Only cells whose name contains this. */
  readonly only: string;
  /** File for the report; standard output when absent. */
  readonly out: string | undefined;
  /** File with the markers between which the summary goes. */
  readonly readme: string | undefined;
  /** Folder for images and sockets; a fresh one in the system's temporary folder when absent. */
  readonly parentDir: string | undefined;
}

/** Those that know the format. */
const IMAGE_SERVERS: readonly ServerKind[] = SERVERS.filter(({ name }) => name !== 'nbdkit');

/** Runs the benchmark and writes its report. @throws Error when a cell failed or a result differed */
export async function benchImages(options: ImagesOptions): Promise<void> {
  await inTempFolder(options.parentDir, async (dir) => {
    const run = new Run(options, { dir, size: options.size });
    const versions = await Promise.all(IMAGE_SERVERS.map(versionOf));
    await run.all();
    const facts = { ...options, versions, kernel: release(), ...run.collected };
    const [report, summary] = [renderImagesReport(facts), renderSummary(facts)];
    await publish(options, 'bench:images', { report, summary });
    checkComplete(run.collected.failures);
  });
}

class Run {
  readonly collected: Collected = {
    cells: new Map(),
    conversions: new Map(),
    openings: new Map(),
    failures: [],
  };

  constructor(
    private readonly options: ImagesOptions,
    private readonly set: ImageSet,
  ) {}

  async all(): Promise<void> {
    const wanted = ({ name }: { readonly name: string }): boolean =>
      name.includes(this.options.only);
    const cells = IMAGE_CELLS.filter(wanted);
    const conversions = CONVERT_CELLS.filter(wanted);
    await this.#makeImages(cells, conversions);
    for (let round = 1; round <= this.options.rounds; round += 1) {
      say(`round ${round} of ${this.options.rounds}`);
      for (const cell of cells) await this.#cell(cell);
      for (const cell of conversions) await this.#convert(cell);
      for (const cell of OPEN_CELLS.filter(wanted)) await this.#open(cell);
    }
  }

  async #makeImages(
    cells: readonly ImageCell[],
    conversions: readonly ConvertCell[],
  ): Promise<void> {
    for (const kind of new Set(['raw' as const, ...cells.map(({ image }) => image)])) {
      await makeKind(this.set, kind);
    }
    if (conversions.some(({ source }) => source === 'sparse')) await makeSparse(this.set);
  }

  async #cell(cell: ImageCell): Promise<void> {
    const shown: string[] = [];
    const { rounds } = entryOf(this.collected.cells, cell.name, () => ({
      cell,
      rounds: new Map<string, Measurement[]>(),
    }));
    for (const kind of IMAGE_SERVERS) {
      await this.#attempt(`${kind.name}, ${cell.name}`, async () => {
        const seconds = this.options.secondsPerCell;
        const measured = await measureCell(kind, cell, { ...this.set, seconds });
        entryOf(rounds, kind.name, (): Measurement[] => []).push(measured);
        const scale = cell.unit === 'bytes' ? 1e6 : 1;
        shown.push(`${kind.name} ${Math.round(measured.rate / scale)}`);
      });
    }
    say(`  ${cell.name} (${cell.unit === 'bytes' ? 'MB/s' : '1/s'}): ${shown.join(', ')}`);
  }

  async #convert(cell: ConvertCell): Promise<void> {
    const shown: string[] = [];
    const byProgram = entryOf(this.collected.conversions, cell.name, () => new Map());
    for (const converter of CONVERTERS) {
      await this.#attempt(`${converter.name}, ${cell.name}`, async () => {
        const timed = await measureConvert(converter, cell, this.set);
        entryOf(byProgram, converter.name, (): (typeof timed)[] => []).push(timed);
        shown.push(`${converter.name} ${timed.seconds.toFixed(3)} s`);
      });
    }
    say(`  ${cell.name}: ${shown.join(', ')}`);
  }

  async #open(cell: (typeof OPEN_CELLS)[number]): Promise<void> {
    const shown: string[] = [];
    const byDaemon = entryOf(this.collected.openings, cell.name, () => new Map());
    for (const kind of STORAGE_DAEMONS) {
      await this.#attempt(`${kind.name}, ${cell.name}`, async () => {
        const opened = await measureOpen(kind, cell, this.set);
        entryOf(byDaemon, kind.name, (): (typeof opened)[] => []).push(opened);
        shown.push(`${kind.name} ${(opened.seconds * 1000).toFixed(1)} ms`);
      });
    }
    say(`  ${cell.name}: ${shown.join(', ')}`);
  }

  #attempt(what: string, action: () => Promise<void>): Promise<void> {
    return attempt(this.collected.failures, what, action);
  }
}
