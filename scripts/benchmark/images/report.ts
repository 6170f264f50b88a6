// SPDX-License-Identifier: MIT
/** The result of the benchmark of images as Markdown. */
import { loadavg } from 'node:os';
import { MIB } from '../cells.js';
import type { Measurement } from '../measure.js';
import { machine, median, NONE, table, times } from '../report.js';
import { HUGE_SIZE, type ImageCell, type ImageKind } from './cells.js';
import type { Opened, Timed } from './measure.js';

type ByName<T> = Map<string, T>;

export interface CellRounds {
  readonly cell: ImageCell;
  /** By name of server. */
  readonly rounds: ByName<Measurement[]>;
}

export interface Collected {
  readonly cells: ByName<CellRounds>;
  /** By name of cell and program. */
  readonly conversions: ByName<ByName<Timed[]>>;
  /** By name of cell and daemon. */
  readonly openings: ByName<ByName<Opened[]>>;
  /** Measurements that are missing, and why. */
  readonly failures: string[];
}

export interface ImagesFacts extends Collected {
  readonly rounds: number;
  readonly secondsPerCell: number;
  /** Bytes. */
  readonly size: number;
  readonly versions: readonly string[];
  readonly kernel: string;
}

const SUBJECT = 'diskferryd';
const PEERS = ['qemu-storage-daemon', 'qemu-nbd'] as const;
const SERVERS = [SUBJECT, ...PEERS] as const;
const [OURS, THEIRS] = ['diskferry img', 'qemu-img'];

const of = ({ rounds }: CellRounds, server: string, field: keyof Measurement): number =>
  median((rounds.get(server) ?? []).map((round) => round[field]));

const ratio = (result: CellRounds, peer: string): number =>
  of(result, SUBJECT, 'rate') / of(result, peer, 'rate');

const shown = (value: number, digits: number): string =>
  Number.isNaN(value) ? NONE : value.toFixed(digits);

function rateOf(result: CellRounds, server: string): string {
  const value = of(result, server, 'rate');
  if (Number.isNaN(value)) return NONE;
  return result.cell.unit === 'bytes'
    ? `${Math.round(value / 1e6)} MB/s`
    : `${Math.round(value)}/s`;
}

/** Of a request in microseconds, or of a GB in milliseconds. */
function cpuOf(result: CellRounds, server: string): string {
  const value = of(result, server, 'cpuPerUnit');
  if (Number.isNaN(value)) return NONE;
  return result.cell.unit === 'bytes'
    ? `${Math.round(value * 1e12)} ms/GB`
    : `${(value * 1e6).toFixed(1)} µs`;
}

function cellTable(facts: ImagesFacts): string {
  const rows = [...facts.cells.values()].map((result) => [
    result.cell.name,
    ...SERVERS.map((server) => rateOf(result, server)),
    ...PEERS.map((peer) => times(ratio(result, peer))),
    ...SERVERS.map((server) => cpuOf(result, server)),
    ...SERVERS.map((server) => shown(of(result, server, 'peakMemory') / MIB, 0)),
  ]);
  const head = ['cell', SUBJECT, 'qsd', 'qemu-nbd', 'to qsd', 'to qemu-nbd'];
  const costs = ['CPU diskferryd', 'qsd', 'qemu-nbd', 'peak MiB diskferryd', 'qsd', 'qemu-nbd'];
  return table([...head, ...costs], rows);
}

function convertTable(facts: ImagesFacts): string {
  const rows = [...facts.conversions].map(([name, byProgram]) => {
    const value = (program: string | undefined, field: keyof Timed): number =>
      median((byProgram.get(program ?? '') ?? []).map((timed) => timed[field]));
    const [ours, theirs] = [value(OURS, 'seconds'), value(THEIRS, 'seconds')];
    return [
      name,
      shown(ours, 3),
      shown(theirs, 3),
      times(theirs / ours),
      shown(value(OURS, 'cpuSeconds'), 2),
      shown(value(THEIRS, 'cpuSeconds'), 2),
    ];
  });
  const head = ['cell', 's diskferry img', 'qemu-img', 'faster'];
  return table([...head, 'CPU s diskferry img', 'qemu-img'], rows);
}

interface Opening {
  readonly name: string;
  readonly milliseconds: number;
  readonly mebibytes: number;
}

function opening({ openings }: ImagesFacts, daemon: string): Opening[] {
  return [...openings].map(([name, byDaemon]) => {
    const rounds = byDaemon.get(daemon) ?? [];
    return {
      name,
      milliseconds: median(rounds.map(({ seconds }) => seconds)) * 1000,
      mebibytes: median(rounds.map(({ memory }) => memory)) / MIB,
    };
  });
}

function openTable(facts: ImagesFacts): string {
  const theirs = opening(facts, PEERS[0]);
  const rows = opening(facts, SUBJECT).map(({ name, milliseconds, mebibytes }, at) => [
    name,
    shown(milliseconds, 1),
    shown(theirs[at]?.milliseconds ?? Number.NaN, 1),
    shown(mebibytes, 1),
    shown(theirs[at]?.mebibytes ?? Number.NaN, 1),
  ]);
  return table(['cell', 'ms diskferryd', 'qsd', 'more memory MiB diskferryd', 'qsd'], rows);
}

function peerRow(facts: ImagesFacts, peer: string): string[] {
  const compared = [...facts.cells.values()]
    .filter(({ cell }) => cell.image !== 'raw')
    .map((result) => ({ name: result.cell.name, value: ratio(result, peer) }))
    .filter(({ value }) => !Number.isNaN(value))
    .sort((a, b) => a.value - b.value);
  const [lowest] = compared;
  const below = compared.filter(({ value }) => value < 1).length;
  return [
    'qcow2, served',
    `${times(median(compared.map(({ value }) => value)))} ${peer} in the median cell`,
    lowest ? `${times(lowest.value)} (${lowest.name})` : NONE,
    `${below} of ${compared.length} below 1×; wanted: 1.5×, none below 1×`,
  ];
}

/** How much slower one image is than another under the same loads, by the subject. */
function slowerRow(facts: ImagesFacts, slow: ImageKind, fast: ImageKind): string[] | undefined {
  const found = [...facts.cells.values()].flatMap((result) => {
    if (result.cell.image !== slow) return [];
    const other = facts.cells.get(result.cell.name.replace(slow, fast));
    if (other === undefined) return [];
    const factor = of(other, SUBJECT, 'rate') / of(result, SUBJECT, 'rate');
    return Number.isNaN(factor) ? [] : [{ name: result.cell.name, factor }];
  });
  const [worst] = found.sort((a, b) => b.factor - a.factor);
  if (worst === undefined) return undefined;
  const all = median(found.map(({ factor }) => factor));
  return [
    `${slow} against ${fast}`,
    `costs ${times(all)} in the median cell`,
    `${times(worst.factor)} (${worst.name})`,
    slow === 'full' ? 'what the format costs' : 'wanted: at most 1.5×',
  ];
}

function convertRow(facts: ImagesFacts): string[][] {
  const found = [...facts.conversions].flatMap(([name, byProgram]) => {
    const seconds = (program = ''): number =>
      median((byProgram.get(program) ?? []).map((timed) => timed.seconds));
    const factor = seconds(THEIRS) / seconds(OURS);
    return Number.isNaN(factor) ? [] : [{ name, factor }];
  });
  const [worst] = found.sort((a, b) => a.factor - b.factor);
  if (worst === undefined) return [];
  return [
    [
      'img convert',
      `${times(median(found.map(({ factor }) => factor)))} qemu-img in the median cell`,
      `${times(worst.factor)} (${worst.name})`,
      'wanted: 1×',
    ],
  ];
}

/** The table for README: each goal and what was found. */
export function renderSummary(facts: ImagesFacts): string {
  const slower = [
    slowerRow(facts, 'full', 'raw'),
    slowerRow(facts, 'depth8', 'full'),
    slowerRow(facts, 'depth8-bottom', 'full'),
  ].filter((row) => row !== undefined);
  const rows = [
    ...PEERS.map((peer) => peerRow(facts, peer)),
    ...slower,
    ...convertRow(facts),
    ...opening(facts, SUBJECT).map(({ name, milliseconds, mebibytes }) => [
      name,
      `${shown(milliseconds, 1)} ms`,
      `${shown(mebibytes, 1)} MiB more`,
      'wanted: below 100 ms and 50 MiB',
    ]),
  ];
  return [
    `Made by \`scripts/bench images\` on ${new Date().toISOString().slice(0, 10)}: ${machine(facts.kernel)}.`,
    `Images of ${facts.size / MIB} MiB in the page cache, medians of ${facts.rounds} round(s), ${facts.secondsPerCell} s a cell. Load at the end: ${loadavg()[0]?.toFixed(1)}.`,
    '',
    table(['what', 'found', 'detail', 'note'], rows),
    '',
    ...facts.failures.map((text) => `- failed: ${text}`),
  ].join('\n');
}

/** The whole report; says how it was made, so that it can be made again. */
export function renderImagesReport(facts: ImagesFacts): string {
  return [
    '# Images, side by side',
    '',
    renderSummary(facts),
    '',
    ...facts.versions.map((version) => `- ${version}`),
    '',
    'fio loads every server in turn over a UNIX socket, each freshly started for the cell and warmed up, nothing pinned. All images hold',
    "the same random data and were made by QEMU's tools, with clusters of 64 KiB: `full` has every cluster, `half` an arbitrary half of its pieces of",
    '128 KiB, `chain3` three backing files with a quarter of the pieces in each layer, `depth8` seven with an eighth in each, `depth8-bottom` seven',
    'with everything in the lowest, `empty` nothing (and four times the size). Writes to `raw` and `full` overwrite, for a time; to the others they go once over a fresh copy,',
    'the first quarter of it to warm up, random ones for a sixteenth as many bytes as the image has, and `qemu-img check` looks at the result. Results of conversions are compared',
    `by \`qemu-img compare\`. Opening an image of ${HUGE_SIZE} is a \`blockdev-add\` in a daemon that is up; memory is what its peak grows by.`,
    '',
    '## Served',
    '',
    cellTable(facts),
    '',
    '## Converted',
    '',
    convertTable(facts),
    '',
    '## Opened',
    '',
    openTable(facts),
    '',
  ].join('\n');
}
