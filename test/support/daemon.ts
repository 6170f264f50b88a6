// SPDX-License-Identifier: MIT
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { collect, spawnTracked } from './peers.js';
import { QmpClient } from './qmp-client.js';
import type { Scope } from './temp.js';

const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 60_000;
const POLL_MS = 10;

/**
 * The built daemon. `DISKFERRY_TEST_DAEMON` names another command line (words parted by spaces),
 * which is how a test of this folder is itself tried against qemu-storage-daemon.
 */
export function daemonCommand(): { program: string; args: string[] } {
  const chosen = process.env.DISKFERRY_TEST_DAEMON?.split(' ').filter((word) => word !== '');
  const [program, ...args] = chosen ?? [];
  if (program !== undefined) return { program, args };
  const launcher = fileURLToPath(new URL('../../dist/src/daemon/launch.cjs', import.meta.url));
  if (!existsSync(launcher)) throw new Error(`${launcher} is missing: run "npm run build" first`);
  return { program: process.execPath, args: [launcher] };
}

function commandLine(): string[] {
  const { program, args } = daemonCommand();
  return [program, ...args];
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A running daemon that belongs to one test. */
export class Daemon {
  readonly exited: Promise<Exit>;
  readonly #process: ChildProcess;
  readonly #output: { text(): string };
  #exit: Exit | undefined;

  constructor(
    process: ChildProcess,
    readonly dir: string,
    readonly qmpPath: string,
  ) {
    this.#process = process;
    this.#output = collect(process.stderr);
    process.stdout?.resume();
    this.exited = new Promise((resolve) => {
      const ended = (exit: Exit): void => {
        this.#exit ??= exit;
        resolve(this.#exit);
      };
      process.once('error', () => ended({ code: null, signal: null }));
      process.once('exit', (code, signal) => ended({ code, signal }));
    });
  }

  get pid(): number {
    if (this.#process.pid === undefined) throw new Error('the daemon did not start');
    return this.#process.pid;
  }

  /** Set once the process has ended. */
  get exit(): Exit | undefined {
    return this.#exit;
  }

  /** What it wrote to standard error so far. */
  get log(): string {
    return this.#output.text();
  }

  /** A new monitor connection, past its greeting; closed with the scope that is given. */
  async qmp(scope: Scope): Promise<QmpClient> {
    const client = await QmpClient.connect(this.qmpPath);
    scope.defer(() => client.close());
    return client;
  }

  /** Asks it to end with a signal and waits for that. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> {
    this.#process.kill(signal);
    const late = sleep(STOP_TIMEOUT_MS, undefined, { ref: false });
    const exit = await Promise.race([this.exited, late]);
    if (exit !== undefined) return exit;
    this.#process.kill('SIGKILL');
    throw new Error(`no end ${STOP_TIMEOUT_MS} ms after ${signal}; it said:\n${this.log}`);
  }

  /** Ends it without a chance to clean up. */
  async kill(): Promise<void> {
    if (this.#exit === undefined) this.#process.kill('SIGKILL');
    await this.exited;
  }

  /** What each open descriptor points to, such as `socket:[12]` or a path. */
  async descriptors(): Promise<string[]> {
    const folder = `/proc/${this.pid}/fd`;
    const links = (await readdir(folder)).map((fd) => readlink(join(folder, fd)).catch(() => ''));
    return (await Promise.all(links)).filter((link) => link !== '');
  }

  /** Resident memory now and at its highest, in bytes. */
  async memory(): Promise<{ rss: number; peak: number }> {
    const status = await readFile(`/proc/${this.pid}/status`, 'utf8');
    const field = (name: string): number =>
      Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]) * 1024;
    return { rss: field('VmRSS'), peak: field('VmHWM') };
  }

  /** TCP ports on which it listens, of either family, lowest first. */
  async tcpPorts(): Promise<number[]> {
    const owned = new Set(
      (await this.descriptors()).map((link) => /^socket:\[(\d+)]$/.exec(link)?.[1]),
    );
    const ports: number[] = [];
    for (const table of ['tcp', 'tcp6']) {
      const rows = (await readFile(`/proc/${this.pid}/net/${table}`, 'utf8')).split('\n').slice(1);
      for (const row of rows) {
        const [, local, , state, , , , , , inode] = row.trim().split(/\s+/);
        const port = local?.split(':')[1];
        if (state === '0A' && port !== undefined && owned.has(inode))
          ports.push(parseInt(port, 16));
      }
    }
    return ports.sort((a, b) => a - b);
  }
}

export interface DaemonOptions {
  /** Another program with the same options instead, and what goes before them. */
  readonly command?: readonly string[];
  /** Leave out the monitor at `daemon.qmpPath`. */
  readonly withoutMonitor?: boolean;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Exit with another status than 0 at the end of the test is fine. */
  readonly mayFail?: boolean;
}

/**
 * Starts the daemon and waits until it has carried out all its options: then its pid file is there,
 * and its monitor's socket, which is asked for last.
 * At the end of the scope it gets SIGTERM, and has to end with status 0.
 */
export async function startDaemon(
  scope: Scope,
  args: readonly string[],
  options: DaemonOptions = {},
): Promise<Daemon> {
  const dir = await scope.tempDir();
  const qmpPath = join(dir, 'qmp.sock');
  const pidfile = join(dir, 'pid');
  const [program, ...first] = options.command ?? commandLine();
  if (program === undefined) throw new Error('no program to start');
  // Options are carried out in their order, so the monitor's socket comes after all that `args` asks.
  const monitor = options.withoutMonitor
    ? []
    : [
        ...['--chardev', `socket,id=test-monitor,path=${qmpPath},server=on,wait=off`],
        ...['--monitor', 'chardev=test-monitor'],
      ];
  const child = spawnTracked(program, [...first, ...args, ...monitor, '--pidfile', pidfile], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { ...process.env, ...options.env },
  });
  const daemon = new Daemon(child, dir, qmpPath);
  scope.defer(async () => {
    if (daemon.exit !== undefined) return;
    const exit = await daemon.stop();
    if (exit.code !== 0 && !options.mayFail) {
      throw new Error(`the daemon ended with ${exit.code ?? exit.signal}:\n${daemon.log}`);
    }
  });
  const signs = options.withoutMonitor ? [pidfile] : [pidfile, qmpPath];
  await waitUntil(() => signs.every((path) => existsSync(path)) || daemon.exit !== undefined, {
    what: () => `the daemon to make ${signs.join(' and ')}; it said:\n${daemon.log}`,
    timeoutMs: READY_TIMEOUT_MS,
  });
  if (daemon.exit !== undefined) {
    throw new Error(`the daemon ended with ${daemon.exit.code} at start:\n${daemon.log}`);
  }
  return daemon;
}

/** Polls until a condition holds. @throws Error that says what did not happen */
export async function waitUntil(
  condition: () => boolean | Promise<boolean>,
  options: { readonly what: () => string; readonly timeoutMs?: number },
): Promise<void> {
  const timeoutMs = options.timeoutMs ?? READY_TIMEOUT_MS;
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) {
      throw new Error(`waited ${timeoutMs} ms in vain for ${options.what()}`);
    }
    await sleep(POLL_MS);
  }
}
