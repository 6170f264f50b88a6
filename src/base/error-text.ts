// SPDX-License-Identifier: MIT
/** One sentence for an error and what caused it, in the form that QMP clients and scripts expect. */
import { getSystemErrorMap } from 'node:util';
import { BlockError, type ErrorCode, errnoName } from './errors.js';

/** Where libuv's words differ from those of the C library, which tools match on. */
const LIBC_WORDS: Readonly<Record<string, string>> = {
  EAGAIN: 'Resource temporarily unavailable',
  EBUSY: 'Device or resource busy',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EAI_AGAIN: 'Temporary failure in name resolution',
  EMFILE: 'Too many open files',
  ENOTFOUND: 'Name or service not known',
  ENOMEM: 'Cannot allocate memory',
  ENOTSUP: 'Operation not supported',
  EOPNOTSUPP: 'Operation not supported',
  EPERM: 'Operation not permitted',
  ETIMEDOUT: 'Connection timed out',
};

const WORDS: ReadonlyMap<string, string> = new Map(
  [...getSystemErrorMap().values()].map(([name, words]) => [
    name,
    LIBC_WORDS[name] ?? words.charAt(0).toUpperCase() + words.slice(1),
  ]),
);

/** What the C library says of an errno name: 'ENOENT' gives 'No such file or directory'. */
export function errnoText(name: string): string {
  return WORDS.get(name) ?? LIBC_WORDS[name] ?? name;
}

const CAUSES_MAX = 8;

/** What one error of a chain says by itself. */
function ownText(error: Error): string {
  // Of several addresses none could be connected to: Node says so without a text of its own.
  const isSystemError = 'syscall' in error || error instanceof AggregateError;
  const errno = isSystemError ? errnoName(error) : undefined;
  return errno !== undefined ? errnoText(errno) : error.message;
}

/**
 * The message of `error`, followed by those of its causes: "Could not open 'a': No such file or directory".
 * A cause whose text is in the message already is not repeated.
 */
export function errorText(error: Error): string {
  let text = ownText(error);
  let cause = error.cause;
  for (let depth = 0; cause instanceof Error && depth < CAUSES_MAX; depth++) {
    const more = ownText(cause);
    if (more !== '' && !text.toLowerCase().includes(more.toLowerCase())) text += `: ${more}`;
    cause = cause.cause;
  }
  return text;
}

/** What a failed request's error code stands for where no system call said an errno. */
const ERRNO_OF_CODE: Readonly<Partial<Record<ErrorCode, string>>> = {
  DF_IO: 'EIO',
  DF_CORRUPT_IMAGE: 'EIO',
  DF_PROTOCOL: 'EIO',
  DF_NO_SPACE: 'ENOSPC',
  DF_NO_MEMORY: 'ENOMEM',
  DF_TIMEOUT: 'ETIMEDOUT',
};

/**
 * The words of the errno that a failed request ended with, which scripts match on, then the details:
 * "No space left on device: the NBD server failed NBD_CMD_WRITE of ...". Without an errno: `errorText`.
 */
export function requestErrorText(error: Error): string {
  const text = errorText(error);
  const errno = requestErrno(error);
  if (errno === undefined) return text;
  const words = errnoText(errno);
  if (text.startsWith(words)) return text;
  const end = `: ${words}`;
  return `${words}: ${text.endsWith(end) ? text.slice(0, -end.length) : text}`;
}

function requestErrno(error: Error): string | undefined {
  if (!(error instanceof BlockError)) return 'syscall' in error ? errnoName(error) : undefined;
  // However the connection was lost, who sends requests is told of an I/O error.
  if (error.code === 'DF_DISCONNECTED') return 'EIO';
  return error.context.errno ?? ERRNO_OF_CODE[error.code];
}

/** What to do about the error, where it or a cause of it says so: a line of its own, without an end. */
export function errorHint(error: Error): string | undefined {
  let next: unknown = error;
  for (let depth = 0; next instanceof Error && depth < CAUSES_MAX; depth++) {
    if (next instanceof BlockError && next.context.hint !== undefined) return next.context.hint;
    next = next.cause;
  }
  return undefined;
}

/** For a terminal: the sentence, and the hint on the next line. */
export function errorLines(error: Error): string {
  const hint = errorHint(error);
  return hint === undefined ? errorText(error) : `${errorText(error)}\n${hint}`;
}
