// SPDX-License-Identifier: MIT
/** One sentence for an error and what caused it, in the form that QMP clients and scripts expect. */
import { getSystemErrorMap } from 'node:util';
import { errnoName } from './errors.js';

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
  const isSystemError = 'syscall' in error;
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
