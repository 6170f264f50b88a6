// SPDX-License-Identifier: MIT
/** diskferryd: from the command line to a daemon that serves, and to its end. */

import { errorLines, errorText } from '../base/error-text.js';
import { toError } from '../base/errors.js';
import { createLog, type Log, setRootLog } from '../base/log.js';
import { tryLockFile } from '../sys/file-lock.js';
import { Daemon } from './daemon.js';
import {
  DAEMON_UMASK,
  type ReadinessReport,
  readinessReport,
  startInBackground,
} from './daemonize.js';
import {
  type DaemonOptions,
  descriptorsOf,
  type OptionAction,
  parseCommandLine,
} from './options.js';
import { createPidFile, type PidFile } from './pidfile.js';
import { takeActivationSockets } from './socket-activation.js';
import { VERSION_TEXT } from './version.js';

const PROGRAM = 'diskferryd';
/** Nothing happens then; it is the longest interval that there is. */
const KEEP_ALIVE_MS = 2 ** 31 - 1;

async function main(): Promise<void> {
  const report = readinessReport(process.env);
  try {
    const parsed = parseCommandLine(process.argv.slice(2), VERSION_TEXT);
    if (parsed.kind === 'print') {
      process.stdout.write(parsed.text);
      return;
    }
    if (parsed.options.daemonize && report === undefined) await background(parsed.options);
    else await run(parsed.options, report);
  } catch (error) {
    fail(errorLines(toError(error)), report);
  }
}

/** One clear line, exit 1. */
function fail(reason: string, report: ReadinessReport | undefined): void {
  if (report !== undefined) report.failed(reason);
  else process.stderr.write(`${PROGRAM}: ${reason}\n`);
  process.exit(1);
}

async function background({ actions }: DaemonOptions): Promise<void> {
  // A copy: the second process takes them as ours, under our pid.
  const activated = takeActivationSockets({ ...process.env }, process.pid).map(({ fd }) => fd);
  const result = await startInBackground({
    execPath: process.execPath,
    args: [...process.execArgv, ...process.argv.slice(1)],
    env: process.env,
    inheritFds: [...new Set([...activated, ...descriptorsOf(actions)])],
  });
  if (!result.ready) fail(result.reason, undefined);
  process.exit(0);
}

async function run(options: DaemonOptions, report: ReadinessReport | undefined): Promise<void> {
  const log = await createLog({
    level: options.logLevel,
    format: process.stderr.isTTY === true ? 'text' : 'json',
    fd: 2,
    colour: process.stderr.isTTY === true,
    held: true,
  });
  setRootLog(log.logger);
  const ending = new Ending(log);
  const daemon = new Daemon({
    logger: log.logger,
    stdio: { input: process.stdin, output: process.stdout },
    onQuit: () => ending.begin('quit'),
  });
  ending.daemon = daemon;
  stayUp(ending, log);
  if (report !== undefined) process.umask(DAEMON_UMASK);
  try {
    // A daemon in the background was started by the process that the sockets were passed to.
    const owner = report === undefined ? process.pid : process.ppid;
    daemon.namedSockets = takeActivationSockets(process.env, owner);
    await applyAll(daemon, options, log);
    // Scripts take the file for the sign that everything is there.
    ending.pidFile = makePidFile(options);
  } catch (error) {
    await daemon.shutDown();
    ending.pidFile?.remove();
    await log.flush();
    fail(errorLines(toError(error)), report);
  }
  log.release();
  if (report === undefined) return;
  process.chdir('/');
  report.ready();
}

/** From now on only `quit` and signals end the process. */
function stayUp(ending: Ending, { logger }: Log): void {
  // Without a socket or timer left Node would end the process, nodes unflushed: only we end it.
  setInterval(() => undefined, KEEP_ALIVE_MS);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => ending.begin(signal));
  }
  process.on('SIGUSR1', () => logger.debug({ event: 'daemon.signal' }, 'SIGUSR1: ignored'));
  process.on('uncaughtException', (error) => {
    logger.fatal({ event: 'daemon.unexpected', error }, 'an unexpected error; the daemon goes on');
  });
}

/** All that the command line asks for. Monitors last: a command must not find half of it. */
async function applyAll(daemon: Daemon, { actions }: DaemonOptions, log: Log): Promise<void> {
  const isMonitor = ({ kind }: OptionAction): boolean => kind === 'monitor';
  for (const action of actions.filter((one) => !isMonitor(one))) {
    // Nobody knows how long that takes, and what there is to see meanwhile.
    if (mayWait(action)) log.release();
    await applyNamed(daemon, action);
  }
  for (const action of actions.filter(isMonitor)) await applyNamed(daemon, action);
}

/** A socket that waits for its first client. */
function mayWait(action: OptionAction): boolean {
  if (action.kind !== 'chardev' || action.backend.type !== 'socket') return false;
  return action.backend.data.wait === true;
}

function makePidFile({ pidfile }: DaemonOptions): PidFile | undefined {
  if (pidfile === undefined) return undefined;
  return createPidFile({ path: pidfile, pid: process.pid, tryLock: tryLockFile });
}

async function applyNamed(daemon: Daemon, action: DaemonOptions['actions'][number]): Promise<void> {
  try {
    await daemon.apply(action);
  } catch (error) {
    throw new Error(`${action.place}: ${errorText(toError(error))}`, { cause: error });
  }
}

/** The end of the process: begun once, whoever asks first. */
class Ending {
  daemon: Daemon | undefined;
  pidFile: PidFile | undefined;
  #begun = false;

  constructor(private readonly log: Log) {}

  /** Ends everything in order, then the process: with 0 when that went well. */
  begin(reason: string): void {
    if (this.#begun) return;
    this.#begun = true;
    this.log.release();
    this.log.logger.info({ event: 'daemon.shutdown', reason }, 'shutting down');
    void this.#end();
  }

  async #end(): Promise<void> {
    // The answer to `quit` is written before the monitors are closed.
    await new Promise((resolve) => setImmediate(resolve));
    await this.daemon?.shutDown();
    this.pidFile?.remove();
    await this.log.flush();
    process.exit(this.daemon?.clean === false ? 1 : 0);
  }
}

void main();
