// SPDX-License-Identifier: MIT
/**
 * The main job of diskferry, for real: two daemons, a disk in the first one, a client that writes to
 * it without a pause, and the disk moved to the second daemon meanwhile. At the end the second image
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

const CLI = fileURLToPath(new URL('../src/cli/launch.cjs', import.meta.url));

async function main(): Promise<number> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'diskferry-demo-'));
  const started: DemoDaemon[] = [];
  try {
    return await demonstrate(folder, started);
  } finally {
    for (const daemon of started) daemon.kill();
    await rm(folder, { recursive: true, force: true });
  }
}

async function demonstrate(folder: string, started: DemoDaemon[]): Promise<number> {
  say(`a disk image of ${SIZE / MIB} MiB, half of it data, and an empty one of the same size`);
  const images = await makeImages(folder, SIZE);
  say('two daemons: a has the disk, b has the empty image');
  const a = await DemoDaemon.start({ folder, name: 'a', image: images.source });
  started.push(a);
  const b = await DemoDaemon.start({ folder, name: 'b', image: images.target });
  started.push(b);
  say('a client writes to the disk in daemon a and does not stop');
  const writer = await Writer.connect(a.socket, images.content);
  const writing = writer.run();
  await pause(500);
  say(`diskferry migrate --from a.qmp --node disk --to '${b.uri}'`);
  const before = writer.acknowledged;
  const seconds = await migrate(a, b);
  const during = writer.acknowledged - before;
  say('the client still writes, to the same connection; the data goes to b now');
  await pause(500);
  await writer.stop();
  await writing;
  const after = writer.acknowledged - before - during;
  await a.quit();
  await b.quit();
  const differs = await imageDiffers(images.target, images.content);
  report({ seconds, during, after, writer });
  if (differs !== undefined) {
    process.stdout.write(`DIFFERENT from byte ${differs} on\n`);
    return 1;
  }
  process.stdout.write('identical\n');
  return 0;
}

/** Runs the command that an operator would. @returns how long it took, seconds */
async function migrate(a: DemoDaemon, b: DemoDaemon): Promise<number> {
  const start = performance.now();
  const args = ['migrate', '--from', a.monitor, '--node', 'disk', '--to', b.uri];
  const child = spawn(process.execPath, [CLI, ...args], { stdio: 'inherit' });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', resolve);
  });
  if (code !== 0) throw new Error(`diskferry migrate ended with ${code}`);
  return (performance.now() - start) / 1000;
}

interface Measured {
  readonly seconds: number;
  readonly during: number;
  readonly after: number;
  readonly writer: Writer;
}

function report({ seconds, during, after, writer }: Measured): void {
  const rows: [string, string][] = [
    ['disk', `${SIZE / MIB} MiB`],
    ['time of the migration', `${seconds.toFixed(1)} s`],
    ['writes acknowledged meanwhile', String(during)],
    ['writes acknowledged after the pivot', String(after)],
    ['slowest write', `${writer.slowestMs.toFixed(1)} ms`],
    ['errors that the client saw', String(writer.errors)],
  ];
  const width = Math.max(...rows.map(([label]) => label.length));
  process.stdout.write('\n');
  for (const [label, value] of rows) process.stdout.write(`  ${label.padEnd(width)}  ${value}\n`);
  process.stdout.write('\nimage b against what the client was told: ');
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
    process.exitCode = 1;
  },
);
