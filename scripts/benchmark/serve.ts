// SPDX-License-Identifier: MIT
/** `scripts/bench serve`: the same load against every server in turn, in one run. */
import { copyFile, rm } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { CELLS } from './cells.js';
import { attempt, checkComplete, entryOf, inTempFolder, publish, say } from './collect.js';
import {
  type Fairness,
  greetingTimes,
  type Measurement,
  makeImage,
  measure,
  measureFairness,
  type Setup,
  syncFile,
} from './measure.js';
import { holdInPageCache } from './page-cache.js';
import { type CellResult, renderReport, renderSummary } from './report.js';
import { SERVERS, type ServerKind, TRANSPORTS, versionOf } from './servers.js';

export interface ServeOptions {
  readonly rounds: number;
  readonly secondsPerCell: number;
  /** Only cells whose transport and name contain this, such as `tcp 4k`. */
  readonly only: string;
  /** Names of the servers; all when empty. */
  readonly servers: readonly string[];
  /** File for the report; standard output when absent. */
  readonly out: string | undefined;
  /** File with the markers between which the summary goes. */
  readonly readme: string | undefined;
  /** Folder for images and sockets; a fresh one in the system's temporary folder when absent. */
  readonly parentDir: string | undefined;
}

/** Cells other than those of `CELLS`, as `--only` names them. */
const GREETING_CELL = 'unix greeting';
const FAIRNESS_CELL = 'unix cold-cache';

interface Collected {
  readonly cells: readonly (CellResult & { readonly rounds: Map<string, Measurement[]> })[];
  readonly greetingMs: Map<string, number[]>;
  readonly fairness: Map<string, Fairness[]>;
  /** What went wrong; the other measurements go on. */
  readonly failures: string[];
}

function chooseServers(names: readonly string[]): ServerKind[] {
  for (const name of names) {
    if (SERVERS.some((server) => server.name === name)) continue;
    const known = SERVERS.map((server) => server.name).join(', ');
    throw new Error(`no server is called '${name}'; there are: ${known}`);
  }
  return SERVERS.filter(({ name }) => names.length === 0 || names.includes(name));
}

function append<T>(to: Map<string, T[]>, key: string, ...values: T[]): void {
  entryOf(to, key, (): T[] => []).push(...values);
}

function nothingYet(wanted: (name: string) => boolean): Collected {
  return {
    cells: TRANSPORTS.flatMap((transport) =>
      CELLS.filter((cell) => wanted(`${transport} ${cell.name}`)).map((cell) => ({
        cell,
        transport,
        rounds: new Map<string, Measurement[]>(),
      })),
    ),
    greetingMs: new Map(),
    fairness: new Map(),
    failures: [],
  };
}

/** Runs the benchmark and writes its report. @throws Error when a server or client failed */
export async function benchServe(options: ServeOptions): Promise<void> {
  const servers = chooseServers(options.servers);
  await inTempFolder(options.parentDir, async (dir) => {
    const versions = await Promise.all(
      servers.map(async (kind) => ({ name: kind.name, version: await versionOf(kind) })),
    );
    const collected = await runRounds(options, servers, dir);
    const facts = {
      ...collected,
      servers: versions,
      rounds: options.rounds,
      seconds: options.secondsPerCell,
      kernel: release(),
    };
    const [report, summary] = [renderReport(facts), renderSummary(facts)];
    await publish(options, 'bench:serve', { report, summary });
    checkComplete(collected.failures);
  });
}

async function runRounds(
  options: ServeOptions,
  servers: readonly ServerKind[],
  dir: string,
): Promise<Collected> {
  const wanted = (name: string): boolean => name.includes(options.only);
  const collected = nothingYet(wanted);
  const setup = { dir, image: join(dir, 'warm.raw'), seconds: options.secondsPerCell };
  await makeImage(setup.image);
  const held = await holdInPageCache(setup.image);
  if (held.refused !== undefined) {
    say(`the image may leave the page cache, it can't be locked there: ${held.refused}`);
  }
  for (let round = 1; round <= options.rounds; round += 1) {
    say(`round ${round} of ${options.rounds}`);
    await runCells(collected, rotated(servers, round - 1), setup);
    if (wanted(GREETING_CELL)) await runGreetings(collected, servers, setup);
    if (wanted(FAIRNESS_CELL)) await runFairness(collected, rotated(servers, round - 1), setup);
  }
  await held.release();
  return collected;
}

/** The order of the servers, another one each time, so that none always has the disk after the same. */
function rotated<T>(servers: readonly T[], times: number): T[] {
  const first = times % servers.length;
  return [...servers.slice(first), ...servers.slice(0, first)];
}

async function runCells(
  { cells, failures }: Collected,
  servers: readonly ServerKind[],
  setup: Setup,
): Promise<void> {
  for (const [index, { cell, transport, rounds }] of cells.entries()) {
    const shown: string[] = [];
    for (const kind of rotated(servers, index)) {
      await attempt(failures, `${kind.name}, ${transport} ${cell.name}`, async () => {
        const measurement = await measure(kind, transport, cell, setup);
        append(rounds, kind.name, measurement);
        const scaled = cell.unit === 'bytes' ? measurement.rate / 1e6 : measurement.rate;
        shown.push(`${kind.name} ${Math.round(scaled)}`);
      });
    }
    const unit = cell.unit === 'bytes' ? 'MB/s' : '1/s';
    say(`  ${transport} ${cell.name} (${unit}): ${shown.join(', ')}`);
  }
}

async function runGreetings(
  { greetingMs, failures }: Collected,
  servers: readonly ServerKind[],
  setup: Setup,
): Promise<void> {
  for (const kind of servers) {
    await attempt(failures, `${kind.name}, ${GREETING_CELL}`, async () => {
      append(greetingMs, kind.name, ...(await greetingTimes(kind, setup)));
    });
  }
}

async function runFairness(
  { fairness, failures }: Collected,
  servers: readonly ServerKind[],
  setup: Setup,
): Promise<void> {
  const coldImage = join(setup.dir, 'cold.raw');
  await copyFile(setup.image, coldImage);
  await syncFile(coldImage); // only clean pages can be dropped from the cache
  for (const kind of servers.filter(({ severalExports }) => severalExports)) {
    await attempt(failures, `${kind.name}, ${FAIRNESS_CELL}`, async () => {
      append(fairness, kind.name, await measureFairness(kind, 'unix', { ...setup, coldImage }));
    });
  }
  await rm(coldImage, { force: true });
}
