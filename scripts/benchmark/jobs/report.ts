// SPDX-License-Identifier: MIT
/** The result of the benchmark of jobs as Markdown. */
import { loadavg } from 'node:os';
import { MIB } from '../cells.js';
import { machine, mebibytes, median, NONE, table, times } from '../report.js';
import {
  type ChainCell,
  type JobCell,
  LINK_DELAY_MS,
  type LinkKind,
  NARROW_LINK,
} from './cells.js';
import type { JobMeasurement, ReadLatency } from './run-cell.js';

type ByDaemon<T> = Map<string, T>;

export interface CellRounds {
  readonly cell: JobCell | ChainCell;
  readonly rounds: ByDaemon<JobMeasurement[]>;
}

export interface Collected {
  readonly cells: Map<string, CellRounds>;
  /** Bytes that went to the target in one run, by name of cell and daemon. */
  readonly sent: Map<string, ByDaemon<number>>;
  /** Seconds of nbdcopy, by name of target. */
  readonly nbdcopy: Map<string, number[]>;
  readonly latency: ByDaemon<ReadLatency[]>;
  /** What a daemon does not offer. */
  readonly skipped: string[];
  /** Measurements that are missing, and why. */
  readonly failures: string[];
}

export interface JobsFacts extends Collected {
  readonly rounds: number;
  /** Bytes. */
  readonly size: number;
  readonly versions: readonly string[];
  readonly kernel: string;
}

const SUBJECT = 'diskferryd';
const PEER = 'qemu-storage-daemon';
const BOTH = [SUBJECT, PEER] as const;

/** Median of what both daemons' rounds say, NaN where there is none. */
function ofRounds({ rounds }: CellRounds, daemon: string, of: (m: JobMeasurement) => number) {
  return median((rounds.get(daemon) ?? []).map(of));
}

const seconds = (result: CellRounds, daemon: string): number =>
  ofRounds(result, daemon, (measured) => measured.seconds);

/** How many times as fast as the peer. */
const faster = (result: CellRounds): number => seconds(result, PEER) / seconds(result, SUBJECT);

const shown = (value: number, digits: number): string =>
  Number.isNaN(value) ? NONE : value.toFixed(digits);

function cellTable(facts: JobsFacts): string {
  const rows = [...facts.cells.values()].map((result) => {
    const sent = (daemon: string): string =>
      shown((facts.sent.get(result.cell.name)?.get(daemon) ?? Number.NaN) / MIB, 1);
    const of = (what: (m: JobMeasurement) => number, digits: number): string[] =>
      BOTH.map((daemon) => shown(ofRounds(result, daemon, what), digits));
    return [
      result.cell.name,
      ...of((measured) => measured.seconds, 3),
      times(faster(result)),
      ...of((measured) => measured.cpuSeconds, 2),
      ...of((measured) => measured.peakMemory / MIB, 0),
      ...BOTH.map(sent),
      ...of((measured) => (measured.writerRate ?? Number.NaN) / MIB, 1),
    ];
  });
  const pair = (what: string): string[] => [`${what} diskferryd`, 'qsd'];
  const head = ['cell', ...pair('s'), 'faster', ...pair('CPU s'), ...pair('peak MiB')];
  return table([...head, ...pair('sent MiB'), ...pair('writer MiB/s')], rows);
}

const LINK_TITLES: Readonly<Record<LinkKind, string>> = {
  loopback: 'jobs, loopback',
  delay: `jobs, ${LINK_DELAY_MS} ms each way`,
  none: 'jobs on qcow2 chains',
};

function linkRow(facts: JobsFacts, link: LinkKind, goal: string): string[] {
  const compared = [...facts.cells.values()]
    .filter(({ cell }) => cell.link === link && !('linkRate' in cell))
    .map((result) => ({ name: result.cell.name, value: faster(result) }))
    .filter(({ value }) => !Number.isNaN(value))
    .sort((a, b) => a.value - b.value);
  const [lowest] = compared;
  const below = compared.filter(({ value }) => value < 1).length;
  return [
    LINK_TITLES[link],
    `${times(median(compared.map(({ value }) => value)))} qemu-storage-daemon in the median cell`,
    lowest ? `${times(lowest.value)} (${lowest.name})` : NONE,
    `${below} of ${compared.length} below 1×; wanted: ${goal}`,
  ];
}

function copyRows(facts: JobsFacts): string[][] {
  return [...facts.nbdcopy].map(([target, copies]) => {
    const mirror = facts.cells.get(`loopback mirror random to ${target}`);
    const copy = median(copies);
    const took = mirror ? seconds(mirror, SUBJECT) : Number.NaN;
    return [
      `full copy to ${target}`,
      `${times(copy / took)} nbdcopy`,
      `${shown(took, 3)} s against ${shown(copy, 3)} s`,
      'wanted: 1×',
    ];
  });
}

/** Of sources with holes, how much more than their data was sent. */
function sparseRows(facts: JobsFacts): string[][] {
  const sent = [...facts.cells.values()]
    .filter(({ cell }) => 'source' in cell && cell.source === 'sparse')
    .map(({ cell }) => facts.sent.get(cell.name)?.get(SUBJECT) ?? Number.NaN)
    .filter((value) => !Number.isNaN(value));
  if (sent.length === 0) return [];
  const most = Math.max(...sent);
  return [
    [
      'sent of a 90 % sparse disk',
      `${((most / facts.size) * 100).toFixed(1)} % of its size at most`,
      `${mebibytes(most)} of ${mebibytes(facts.size)} MiB`,
      'wanted: no zeroes as data, 10 %',
    ],
  ];
}

function memoryRow(facts: JobsFacts): string[] {
  const of = (daemon: string): number =>
    Math.max(
      ...[...facts.cells.values()]
        .flatMap(({ rounds }) => rounds.get(daemon) ?? [])
        .map((measured) => measured.peakMemory),
    );
  const [ours, theirs] = BOTH.map(of);
  return [
    'peak memory of any cell',
    `${shown((ours ?? Number.NaN) / MIB, 0)} MiB`,
    `qemu-storage-daemon ${shown((theirs ?? Number.NaN) / MIB, 0)} MiB`,
    'wanted: below 300 MiB',
  ];
}

function latencyRows(facts: JobsFacts): string[][] {
  return [...facts.latency].map(([daemon, rounds]) => {
    const idle = median(rounds.map(({ idleUs }) => idleUs));
    const mirroring = median(rounds.map(({ mirroringUs }) => mirroringUs));
    return [
      `p99 of reads during a mirror, ${daemon}`,
      `${times(mirroring / idle)} its idle value`,
      `${shown(mirroring, 0)} µs against ${shown(idle, 0)} µs`,
      daemon === SUBJECT ? 'wanted: below 5×' : '',
    ];
  });
}

function overtakenRows(facts: JobsFacts): string[][] {
  return [...facts.cells.values()]
    .filter(({ cell, rounds }) => 'linkRate' in cell && rounds.size > 0)
    .map((result) => {
      const rate = ofRounds(result, SUBJECT, (measured) => measured.writerRate ?? Number.NaN);
      return [
        'a writer at twice the speed of the link',
        Number.isNaN(seconds(result, SUBJECT)) ? NONE : 'READY is reached',
        `after ${shown(seconds(result, SUBJECT), 1)} s; it wrote ${mebibytes(rate)} MiB/s`,
        `link ${NARROW_LINK / MIB} MiB/s; wanted: READY`,
      ];
    });
}

/** The table for README: each goal and what was found. */
export function renderSummary(facts: JobsFacts): string {
  const rows = [
    linkRow(facts, 'loopback', '2×, none below 1×'),
    linkRow(facts, 'delay', '5×'),
    linkRow(facts, 'none', '2×, none below 1×'),
    ...copyRows(facts),
    ...sparseRows(facts),
    memoryRow(facts),
    ...latencyRows(facts),
    ...overtakenRows(facts),
  ];
  return [
    `Made by \`scripts/bench jobs\` on ${new Date().toISOString().slice(0, 10)}: ${machine(facts.kernel)}.`,
    `A disk of ${facts.size / MIB} MiB, medians of ${facts.rounds} round(s), every copy verified by its hash. Load at the end: ${loadavg()[0]?.toFixed(1)}.`,
    '',
    table(['what', 'found', 'detail', 'note'], rows),
    '',
    ...facts.skipped.map((text) => `- left out: ${text}`),
    ...facts.failures.map((text) => `- failed: ${text}`),
  ].join('\n');
}

/** The whole report; says how it was made, so that it can be made again. */
export function renderJobsReport(facts: JobsFacts): string {
  return [
    '# Jobs, side by side',
    '',
    renderSummary(facts),
    '',
    ...facts.versions.map((version) => `- ${version}`),
    '',
    'The same QMP dialogue goes to both daemons, each freshly started for it, nothing warmed up or pinned, and they take turns at being first.',
    'Before each run that counts, those of nbdcopy too, another process touches and frees 1.5 times the memory of what is copied: a virtual machine gives',
    'free memory back to its host after some seconds, and the first touch afterwards would be most of what is measured. A raw file in the page',
    'cache is the source, and a server of a fresh disk of zeroes on the same machine, reached over TCP, the target. The servers of',
    'diskferryd and qemu-storage-daemon hold theirs in a raw file, and ignore flushes: diskferryd flushes before a backup ends,',
    'qemu-storage-daemon before a mirror is READY, and the disk would be most of what is measured. The time of a mirror is that from the command to READY, after which',
    'it pivots; the time of a backup is that to its end. An incremental backup goes into a disk as it was before the granules of 64 KiB',
    "that the bitmap marks were written, spread at random. The writer writes random blocks of 64 KiB at 20 MiB/s from the job's start.",
    `The link of ${LINK_DELAY_MS} ms each way is a relay, a process of its own, which holds bytes back without a limit on how many are under way.`,
    'What was sent is what entered the relay towards the target, protocol headers included; for loopback it is from one more run with a',
    'relay that does not delay, whose time does not count. After each run the SHA-256 of the target, read by nbdcopy, has to be that of',
    'the source (of a backup: as the source was when the job started). All processes share the cores.',
    '',
    'The cells named `chain` are jobs on three layers of qcow2, each with a third of the data, file to file on one machine: `stream` copies the',
    'two lower layers into the top, `commit` the middle into the base, `active commit` both upper ones into the base, to READY and through the pivot,',
    '`mirror` the whole into a raw file, to READY and through the pivot, `backup to qcow2` the whole into a new image. No node passes on flushes.',
    'Afterwards `qemu-img compare` finds what has to be read from the result, and `qemu-img check` no damage.',
    '',
    cellTable(facts),
    '',
  ].join('\n');
}
