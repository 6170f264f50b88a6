// SPDX-License-Identifier: MIT
/**
 * `--daemonize`: the command returns when the daemon serves, with 0, or when it could not be set up,
 * with 1 and the reason. Node can't fork, so the program is started again, detached, with a pipe on
 * which it reports: one zero byte for "ready", otherwise the text of what went wrong.
 */
import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { BlockError, toError } from '../base/errors.js';
import { DAEMONIZE_REPORT_MAX } from '../base/limits.js';

/** Set for the program's second start only: the number of the descriptor to report on. */
const REPORT_FD_VARIABLE = 'DISKFERRYD_REPORT_FD';
const READY = 0;
/** File mode bits that a daemon in the background does not give to what it creates. */
export const DAEMON_UMASK = 0o027;

export interface DaemonizeOptions {
  /** The program, as `process.execPath`. */
  readonly execPath: string;
  /** Everything after it: Node's own options, the script, the script's arguments. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Descriptors that options name (`addr.type=fd`), kept under the same numbers. */
  readonly inheritFds: readonly number[];
}

export type DaemonizeResult =
  | { readonly ready: true; readonly pid: number }
  /** One line, as the daemon would have put it on stderr. */
  | { readonly ready: false; readonly reason: string };

/** Starts the program in the background and waits until it has reported or ended. */
export async function startInBackground(options: DaemonizeOptions): Promise<DaemonizeResult> {
  const reportFd = lowestFree(options.inheritFds);
  const stdio: ('ignore' | 'pipe' | number)[] = ['ignore', 'ignore', 'ignore'];
  for (let fd = 3; fd <= Math.max(reportFd, ...options.inheritFds); fd++) {
    stdio[fd] = options.inheritFds.includes(fd) ? fd : 'ignore';
  }
  stdio[reportFd] = 'pipe';
  const child = spawn(options.execPath, [...options.args], {
    detached: true,
    stdio: stdio as StdioOptions,
    env: { ...options.env, [REPORT_FD_VARIABLE]: String(reportFd) },
  });
  const report = await readReport(child, reportFd);
  child.unref();
  if (report.length === 1 && report[0] === READY && child.pid !== undefined) {
    return { ready: true, pid: child.pid };
  }
  const text = report.toString('utf8').trim();
  if (text !== '') return { ready: false, reason: text };
  return { ready: false, reason: await describeEnd(child) };
}

/** The lowest descriptor above stderr that is not to be inherited. */
function lowestFree(taken: readonly number[]): number {
  let fd = 3;
  while (taken.includes(fd)) fd++;
  return fd;
}

function readReport(child: ChildProcess, reportFd: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    child.once('error', (error) => {
      const message = 'cannot start the daemon in the background';
      reject(new BlockError('DF_IO', message, {}, { cause: error }));
    });
    const pipe = child.stdio[reportFd] as Readable | null | undefined;
    if (!pipe) return; // spawn failed; 'error' follows
    pipe.on('data', (chunk: Buffer) => {
      length += chunk.length;
      if (length <= DAEMONIZE_REPORT_MAX) chunks.push(chunk);
    });
    pipe.once('error', reject);
    pipe.once('close', () => resolve(Buffer.concat(chunks)));
  });
}

/** The daemon closed its pipe without a word: wait for its end and say how it ended. */
function describeEnd(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    const tell = (code: number | null, signal: string | null): void => {
      const how = signal !== null ? `by signal ${signal}` : `with status ${code}`;
      resolve(`the daemon ended ${how} before it was ready`);
    };
    if (child.exitCode !== null || child.signalCode !== null) {
      tell(child.exitCode, child.signalCode);
    } else {
      child.once('exit', tell);
    }
  });
}

/** The daemon's end of the pipe. Exactly one of the two is called, once; later calls do nothing. */
export interface ReadinessReport {
  /** The daemon listens: the command that started it returns 0. */
  ready(): void;
  /** The daemon could not be set up: the command prints `reason` and returns 1. */
  failed(reason: string): void;
}

/**
 * For the second start: the pipe to report on; undefined for a daemon in the foreground. Takes the
 * variable out of `env`, so that nothing that the daemon starts sees it.
 * @throws BlockError DF_INVALID when the variable holds no descriptor
 */
export function readinessReport(
  env: Record<string, string | undefined>,
): ReadinessReport | undefined {
  const text = env[REPORT_FD_VARIABLE];
  if (text === undefined) return undefined;
  delete env[REPORT_FD_VARIABLE];
  if (!/^[0-9]{1,6}$/.test(text)) {
    throw new BlockError('DF_INVALID', `${REPORT_FD_VARIABLE} holds no descriptor: '${text}'`);
  }
  let fd: number | undefined = Number(text);
  const report = (bytes: Uint8Array): void => {
    if (fd === undefined) return;
    const open = fd;
    fd = undefined;
    try {
      writeSync(open, bytes);
      closeSync(open);
    } catch (error) {
      // The command was killed meanwhile (EPIPE). The daemon goes on; anything else is a bug here.
      const { message } = toError(error);
      if (!message.includes('EPIPE')) {
        throw new BlockError('DF_IO', 'cannot report readiness', {}, { cause: error });
      }
    }
  };
  return {
    ready: () => report(Uint8Array.of(READY)),
    failed: (reason) => report(Buffer.from(reason.slice(0, DAEMONIZE_REPORT_MAX))),
  };
}
