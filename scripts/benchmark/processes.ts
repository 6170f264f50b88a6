// SPDX-License-Identifier: MIT
/** Starting, measuring and ending the programs that a benchmark needs. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** Debian keeps some peers in sbin, and nbdsh needs Debian's own python, so these come first. */
const PEER_PATH = `/usr/sbin:/usr/bin:/sbin:/bin:${process.env.PATH ?? ''}`;
/** The unit of CPU times in /proc: USER_HZ is 100 on every Linux port that Node runs on. */
const TICKS_PER_SECOND = 100;
const STOP_TIMEOUT_MS = 5_000;
const RUN_TIMEOUT_MS = 120_000;
/** How much of what a program says is kept for its error message, characters. */
const OUTPUT_SHOWN = 2_000;

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Starts a program that dies with this process at the latest; it has nothing to read by default. */
export function start(
  program: string,
  args: readonly string[],
  { stdin = 'ignore' }: { readonly stdin?: 'ignore' | 'pipe' } = {},
): ChildProcess {
  const env = { ...process.env, LC_ALL: 'C', PATH: PEER_PATH };
  const child = spawn(program, args, { stdio: [stdin, 'pipe', 'pipe'], env });
  running.add(child);
  child.once('close', () => running.delete(child));
  return child;
}

/** Asks a program to end, and makes it end when it does not. */
export async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  child.kill('SIGTERM');
  const late = sleep(STOP_TIMEOUT_MS, 'late', { ref: false });
  if ((await Promise.race([ended, late])) === 'late') {
    child.kill('SIGKILL');
    await ended;
  }
}

/** Runs a program to its end. @returns what it printed. @throws Error when it fails */
export async function run(program: string, args: readonly string[]): Promise<string> {
  const child = start(program, args);
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), RUN_TIMEOUT_MS);
  try {
    const status = await new Promise<number | string>((resolve, reject) => {
      child.once('error', (cause) => reject(new Error(`cannot run ${program}`, { cause })));
      child.once('close', (code, signal) => resolve(code ?? signal ?? 'no status'));
    });
    if (status === 0) return stdout;
    const said = `${stdout.slice(-OUTPUT_SHOWN)}\n${stderr.slice(-OUTPUT_SHOWN)}`;
    throw new Error(`${program} ${args.join(' ')}: ${status}\n${said}`);
  } finally {
    clearTimeout(timer);
  }
}

/** CPU time, user and system, that a process with all its threads has taken so far, in seconds. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name in parentheses may hold anything, so fields are counted after its end.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** CPU time of programs that have been run to their end, all together, in seconds. */
export function cpuSecondsOfEnded(): number {
  const stat = readFileSync('/proc/self/stat', 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[13]) + Number(fields[14])) / TICKS_PER_SECOND;
}

/** From now on `peakMemory` tells of what comes; it is the memory in use at first. */
export function forgetPeakMemory(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, '5');
}

/** Highest resident memory of a process so far, in bytes. */
export function peakMemory(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}
