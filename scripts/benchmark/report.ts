// SPDX-License-Identifier: MIT
/** The benchmark's result as Markdown. */
import { cpus, totalmem } from 'node:os';
import { type Cell, connectionsOf, MEMORY_CONNECTIONS, MIB } from './cells.js';
import type { Fairness, Measurement } from './measure.js';
import type { Transport } from './servers.js';

/** Rounds of one cell over one transport, by name of server. */
export interface CellResult {
  readonly cell: Cell;
  readonly transport: Transport;
  readonly rounds: ReadonlyMap<string, readonly Measurement[]>;
}

export interface ServeResults {
  readonly servers: readonly { readonly name: string; readonly version: string }[];
  readonly rounds: number;
  readonly seconds: number;
  readonly cells: readonly CellResult[];
  readonly greetingMs: ReadonlyMap<string, readonly number[]>;
  readonly fairness: ReadonlyMap<string, readonly Fairness[]>;
  readonly kernel: string;
  /** Measurements that are missing, and why. */
  readonly failures: readonly string[];
}

/** The server whose ratios are shown, and those that it is compared with. */
const SUBJECT = 'diskferryd';
const PEERS = ['qemu-storage-daemon', 'qemu-nbd', 'nbdkit'] as const;
export const NONE = '–';

/** The middle value; of an even number of values the mean of the middle two; NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const high = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? high : ((sorted[middle - 1] ?? Number.NaN) + high) / 2;
}

function ofRounds(result: CellResult, server: string, field: keyof Measurement): number {
  return median((result.rounds.get(server) ?? []).map((round) => round[field]));
}

/** How many times the subject's rate is that of a peer; NaN where one of them has none. */
function ratio(result: CellResult, peer: string): number {
  return ofRounds(result, SUBJECT, 'rate') / ofRounds(result, peer, 'rate');
}

export const times = (value: number): string =>
  Number.isNaN(value) ? NONE : `${value.toFixed(2)}×`;

function rate(value: number, cell: Cell): string {
  if (Number.isNaN(value)) return NONE;
  return cell.unit === 'bytes' ? `${Math.round(value / 1e6)} MB/s` : `${Math.round(value)}/s`;
}

/** CPU time of one request in microseconds, or of one GB in milliseconds. */
function cpu(value: number, cell: Cell): string {
  if (Number.isNaN(value)) return NONE;
  return cell.unit === 'bytes'
    ? `${Math.round(value * 1e12)} ms/GB`
    : `${(value * 1e6).toFixed(1)} µs`;
}

export const mebibytes = (bytes: number): string =>
  Number.isNaN(bytes) ? NONE : `${Math.round(bytes / MIB)}`;

export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const rule = head.map((_, at) => (at === 0 ? '---' : '---:'));
  return [line(head), line(rule), ...rows.map(line)].join('\n');
}

function rateTable(results: ServeResults): string {
  const names = results.servers.map(({ name }) => name);
  const rows = results.cells.map((result) => [
    `${result.transport} ${result.cell.name}`,
    ...names.map((name) => rate(ofRounds(result, name, 'rate'), result.cell)),
    ...PEERS.map((peer) => times(ratio(result, peer))),
  ]);
  return table(['cell', ...names, ...PEERS.map((peer) => `to ${peer}`)], rows);
}

function costTable(results: ServeResults): string {
  const names = results.servers.map(({ name }) => name);
  const rows = results.cells.map((result) => [
    `${result.transport} ${result.cell.name}`,
    ...names.map((name) => cpu(ofRounds(result, name, 'cpuPerUnit'), result.cell)),
    ...names.map((name) => mebibytes(ofRounds(result, name, 'peakMemory'))),
  ]);
  return table(['cell', ...names.map((n) => `CPU ${n}`), ...names.map((n) => `MiB ${n}`)], rows);
}

function ratios(results: ServeResults): string {
  const rows = PEERS.map((peer) => {
    const compared = results.cells
      .map((result) => ({ result, value: ratio(result, peer) }))
      .filter(({ value }) => !Number.isNaN(value))
      .sort((a, b) => a.value - b.value);
    const [lowest] = compared;
    return [
      peer,
      times(median(compared.map(({ value }) => value))),
      lowest
        ? `${times(lowest.value)} (${lowest.result.transport} ${lowest.result.cell.name})`
        : NONE,
      `${compared.filter(({ value }) => value < 1).length} of ${compared.length}`,
    ];
  });
  return table([`${SUBJECT} to`, 'median cell', 'lowest cell', 'cells below 1'], rows);
}

function others(results: ServeResults): string {
  const rows = results.servers.map(({ name }) => {
    const many = results.cells.filter(({ cell }) => connectionsOf(cell) === MEMORY_CONNECTIONS);
    const peaks = many.flatMap(({ rounds }) => rounds.get(name) ?? []).map((m) => m.peakMemory);
    const fairness = results.fairness.get(name) ?? [];
    const alone = median(fairness.map(({ aloneUs }) => aloneUs));
    const beside = median(fairness.map(({ besideColdUs }) => besideColdUs));
    const greeting = median(results.greetingMs.get(name) ?? []);
    return [
      name,
      Number.isNaN(greeting) ? NONE : `${Math.round(greeting)} ms`,
      peaks.length === 0 ? NONE : `${mebibytes(Math.max(...peaks))} MiB`,
      Number.isNaN(alone) ? NONE : `${Math.round(alone)} µs`,
      Number.isNaN(beside) ? NONE : `${Math.round(beside)} µs`,
      times(beside / alone),
    ];
  });
  const head = [
    'server',
    'start to greeting',
    `peak memory, ${MEMORY_CONNECTIONS} connections`,
    'p99 warm, alone',
    'p99 warm, beside a cold reader',
    'grows',
  ];
  return table(head, rows);
}

/** The machine and what runs on it, in words. */
export function machine(kernel: string): string {
  const processors = cpus();
  return [
    `${processors.length} cores (${processors[0]?.model.trim() ?? 'unknown'})`,
    `${Math.round(totalmem() / 1024 ** 3)} GiB of memory`,
    `Linux ${kernel}`,
    `Node ${process.versions.node}`,
  ].join(', ');
}

/** The rates, how they compare, and how it was made, so that it can be made again. */
export function renderSummary(results: ServeResults): string {
  return [
    `Made by \`scripts/bench serve\` on ${new Date().toISOString().slice(0, 10)}: ${machine(results.kernel)}.`,
    `One raw image of 1 GiB, locked in the page cache in single pages, ${results.rounds} round(s), ${results.seconds} s a cell;`,
    'in each round every cell goes to all servers in turn, in changing order, each freshly started and warmed up for it,',
    'nothing pinned. Medians of the rounds. fio and its server share the cores.',
    '',
    ratios(results),
    '',
    others(results),
    '',
    rateTable(results),
    '',
    ...results.failures.map((failure) => `- failed: ${failure}`),
  ].join('\n');
}

/** The summary, and what each cell cost. */
export function renderReport(results: ServeResults): string {
  return [
    '## Serving, side by side',
    '',
    renderSummary(results),
    '',
    ...results.servers.map(({ name, version }) => `- ${name}: ${version}`),
    '',
    '### CPU time of the server for each request or GB, and its peak memory in MiB',
    '',
    costTable(results),
    '',
  ].join('\n');
}
