// SPDX-License-Identifier: MIT
/**
 * The main job of diskferry, for real: two daemons, a disk in the first one, a client that writes to
 * it all the time, and the disk moved to the second daemon meanwhile. At the end the second image
 * is compared, byte for byte, with what the client was told had been written.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { DemoDaemon } from './demonstration/daemon.js';
import { imageDiffers, makeImages } from './demonstration/images.js';
import { Writer } from './demonstration/writer.js';

const MIB = 1024 * 1024;
const SIZE = 512 * MIB;
/** The whole of it takes some seconds; a machine on which it takes this long has a problem. */
const DEADLINE_MS = 55_000;

const CLI = fileURLToPath(new URL('../src/cli/launch.cjs', import.meta.url));

/** What has to be ended, whatever happens. */
type CleanUp = () => unknown;

async function main(): Promise<number> {
  const cleanUps: CleanUp[] = [];
  const { broken, disarm } = whatBreaksItOff();
  try {
    return await Promise.race([demonstrate(cleanUps), broken]);
  } finally {
    for (const cleanUp of cleanUps.reverse()) await cleanUp();
    disarm();
  }
}

/** A promise that is rejected at the deadline, or when a signal comes. */
function whatBreaksItOff(): { readonly broken: Promise<never>; readonly disarm: () => void } {
  let timer: NodeJS.Timeout | undefined;
  const broken = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`not at the end after ${DEADLINE_MS / 1000} s`));
    }, DEADLINE_MS);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => reject(new Error(`ended by ${signal}`)));
    }
  });
  return { broken, disarm: () => clearTimeout(timer) };
}

async function demonstrate(cleanUps: CleanUp[]): Promise<number> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'diskferry-demo-'));
  cleanUps.push(() => rm(folder, { recursive: true, force: true }));
  say(`a disk image of ${SIZE / MIB} MiB, half of it data, and an empty one of the same size`);
  const images = await makeImages(folder, SIZE);
  say('two daemons: a has the disk, b has the empty image');
  const a = await DemoDaemon.start({ folder, name: 'a', image: images.source });
  cleanUps.push(() => a.kill());
  const b = await DemoDaemon.start({ folder, name: 'b', image: images.target });
  cleanUps.push(() => b.kill());
  say('a client writes to the disk in daemon a, without a pause');
  const writer = await Writer.connect(a.socket, images.content);
  const writing = writer.run();
  writing.catch(() => undefined); // awaited below, unless something else fails first
  cleanUps.push(() => writer.stop());
  await pause(500);
  say(`diskferry migrate --from ${a.monitor} --node disk --to '${b.uri}'`);
  const before = writer.acknowledged;
  const seconds = await migrate({ from: a, to: b, cleanUps });
  const during = writer.acknowledged - before;
  say('the client still writes, to the same connection; the data goes to b now');
  await pause(500);
  writer.stop();
  await writing;
  const after = writer.acknowledged - before - during;
  await a.quit();
  await b.quit();
  report({ copied: a.copied, seconds, during, after, writer });
  return verdict(await imageDiffers(images.target, images.content), writer);
}

interface Migration {
  readonly from: DemoDaemon;
  readonly to: DemoDaemon;
  readonly cleanUps: CleanUp[];
}

/** Runs the command that an operator would. @returns how long it took, seconds */
async function migrate({ from, to, cleanUps }: Migration): Promise<number> {
  const start = performance.now();
  const args = ['migrate', '--from', from.monitor, '--node', 'disk', '--to', to.uri];
  const child = spawn(process.execPath, [CLI, ...args], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  cleanUps.push(() => child.kill('SIGKILL'));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', resolve);
  });
  if (code !== 0) throw new Error(`diskferry migrate ended with ${code}`);
  return (performance.now() - start) / 1000;
}

interface Measured {
  /** Bytes. */
  readonly copied: number;
  readonly seconds: number;
  readonly during: number;
  readonly after: number;
  readonly writer: Writer;
}

function report({ copied, seconds, during, after, writer }: Measured): void {
  const again = `${((copied - SIZE) / MIB).toFixed(1)} MiB again, after writes`;
  const rows: [string, string][] = [
    ['disk', `${SIZE / MIB} MiB`],
    ['copied', `${(copied / MIB).toFixed(1)} MiB: all of it once, ${again}`],
    ['time of the migration', `${seconds.toFixed(1)} s`],
    ['rate', `${(copied / MIB / seconds).toFixed(0)} MiB/s`],
    ['writes acknowledged meanwhile', String(during)],
    ['writes acknowledged after the pivot', String(after)],
    ['slowest write', `${writer.slowestMs.toFixed(1)} ms`],
    ['errors that the client saw', String(writer.errors)],
  ];
  const width = Math.max(...rows.map(([label]) => label.length));
  process.stdout.write('\n');
  for (const [label, value] of rows) process.stdout.write(`  ${label.padEnd(width)}  ${value}\n`);
}

/** @returns the exit status */
function verdict(differs: number | undefined, { errors, acknowledged }: Writer): number {
  process.stdout.write('\nimage b against what the client was told: ');
  if (differs !== undefined) {
    process.stdout.write(`DIFFERENT from byte ${differs} on\n`);
    return 1;
  }
  process.stdout.write('identical\n');
  return errors === 0 && acknowledged > 0 ? 0 : 1;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function say(text: string): void {
  process.stdout.write(`- ${text}\n`);
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
    // What was under way when it was broken off may still hold the loop.
    process.exit(1);
  },
);
