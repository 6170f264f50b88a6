// SPDX-License-Identifier: MIT
/**
 * Logs: one event a line, with a name (`nbd.request`) and its values as fields. Readable text for a
 * person, JSON for a collector. Lines are written without waiting: a reader that has stalled loses
 * lines, never holds up the daemon.
 */
import type { DestinationStream, Logger as PinoLogger, SerializedError } from 'pino';
import { errorText } from './error-text.js';
import { BlockError, errnoName } from './errors.js';
import { LOG_BUFFER_MAX, LOG_FLUSH_MS, LOG_HELD_LINES_MAX } from './limits.js';

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
type Writer = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal';
/** What the parts of this program use of pino's logger. */
export interface Logger extends Pick<PinoLogger, Writer> {
  child(subject: object): Logger;
  isLevelEnabled(level: string): boolean;
}

/** What a line is about; every line of a child logger carries it. */
export interface LogSubject {
  readonly connection?: number | string;
  readonly export?: string;
  readonly node?: string;
  readonly job?: string;
  readonly monitor?: string;
}

export interface LogOptions {
  readonly level: LogLevel;
  /** `text` for a terminal, `json` otherwise. */
  readonly format: 'text' | 'json';
  /** Descriptor to write to; 2 is stderr. It stays open. */
  readonly fd: number;
  /** Colours in `text`. */
  readonly colour?: boolean;
  /** Keep lines below `warn` back until `release`: a start that fails says no more than why. */
  readonly held?: boolean;
}

export interface Log {
  readonly logger: Logger;
  /** Writes what was held back, and from now on each line at once. */
  release(): void;
  /**
   * Resolves when all lines so far are written, or after LOG_FLUSH_MS where the reader has stalled;
   * for the end of the process. Never rejects.
   */
  flush(): Promise<void>;
}

const drop = (): void => undefined;
const SILENT: Logger = {
  ...{ trace: drop, debug: drop, info: drop, warn: drop, error: drop, fatal: drop },
  child: () => SILENT,
  isLevelEnabled: () => false,
};

let root: Logger = SILENT;

/** The logger of this process: silent until the daemon calls `setRootLog`. */
export function rootLog(): Logger {
  return root;
}

export function setRootLog(logger: Logger): void {
  root = logger;
}

/** A logger that puts its subject on every line: `subjectLog({ node: 'disk0' }).warn(...)`. */
export function subjectLog(subject: LogSubject, parent: Logger = root): Logger {
  return parent.child(subject);
}

export function isLogLevel(text: string): text is LogLevel {
  return (LOG_LEVELS as readonly string[]).includes(text);
}

/**
 * Makes a logger. The first argument of each call is an object with `event` (the name) and values,
 * the second a sentence: `logger.info({ event: 'nbd.connect', peer }, 'client connected')`.
 */
export async function createLog(options: LogOptions): Promise<Log> {
  // Loaded only by who writes a log: it costs as much as a fifth of the start of a command.
  const { pino } = await import('pino');
  const destination = pino.destination({
    dest: options.fd,
    sync: false,
    // 1, not 0: with 0 the stream takes a flush for done while a write is still on its way.
    minLength: 1,
    maxLength: LOG_BUFFER_MAX,
  });
  // EPIPE, ENOSPC: there is nobody to tell; the daemon's work matters more than its log.
  destination.on('error', () => undefined);
  const written: DestinationStream =
    options.format === 'json' ? destination : await readable(destination, options.colour ?? false);
  const stream = holdLines(written);
  if (options.held !== true) stream.release();
  const serialize = (error: Error): object => serializeError(error, pino.stdSerializers.err);
  const base = {
    level: options.level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    serializers: { error: serialize, err: serialize },
  };
  return {
    logger: pino(base, stream),
    release: () => stream.release(),
    flush: () =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, LOG_FLUSH_MS);
        destination.flush(() => {
          // An error means that nobody can read the log any more: that can't be told either.
          clearTimeout(timer);
          resolve();
        });
      }),
  };
}

/**
 * What the outside world did needs no stack: message, code, context and causes say it. A stack is
 * for errors that nobody expected.
 */
function serializeError(error: Error, serialize: (error: Error) => SerializedError): object {
  const isExpected =
    error instanceof BlockError ||
    (error instanceof Error && 'syscall' in error && errnoName(error) !== undefined);
  const serialized = serialize(error);
  if (!isExpected) return serialized;
  const { type, message: _message, stack: _stack, ...rest } = serialized;
  return { type, message: errorText(error), ...rest };
}

/** @see pino's levels */
const WARN = 40;

/** In front of another stream: until `release` it keeps lines below `warn`, so many at most. */
function holdLines(stream: DestinationStream): DestinationStream & { release(): void } {
  let held: string[] | undefined = [];
  const release = (): void => {
    const lines = held ?? [];
    held = undefined;
    for (const line of lines) stream.write(line);
  };
  return {
    // Asks pino to put the level of each line into `lastLevel` before it is written.
    [Symbol.for('pino.metadata')]: true,
    lastLevel: 0,
    write(line: string): void {
      if (held === undefined || this.lastLevel >= WARN) stream.write(line);
      else if (held.push(line) > LOG_HELD_LINES_MAX) release();
    },
    release,
  } as DestinationStream & { lastLevel: number; release(): void };
}

async function readable(
  destination: DestinationStream,
  colour: boolean,
): Promise<DestinationStream> {
  // Loaded only when somebody looks: it costs a tenth of the start.
  const { default: pretty } = await import('pino-pretty');
  const format = pretty.prettyFactory({
    colorize: colour,
    translateTime: 'SYS:HH:MM:ss.l',
    messageFormat: (line, messageKey) => {
      const event = typeof line.event === 'string' ? `${line.event}: ` : '';
      return `${event}${String(line[messageKey] ?? '')}`;
    },
    ignore: 'event',
    singleLine: true,
    errorLikeObjectKeys: ['err', 'error'],
  });
  return { write: (line) => destination.write(String(format(line))) };
}
