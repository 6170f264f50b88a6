// SPDX-License-Identifier: MIT
/** One NBD request from submission to its end, over as many connections as that takes. */
import {
  commandName,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  nbdErrorName,
} from '../../../protocol/nbd/constants.js';
import { BlockError, type ErrorCode } from '../../base/errors.js';
import { CoveredRanges } from './covered-ranges.js';
import type { PayloadSource } from './payload.js';

/** One run of equal status in a meta context. */
export interface NbdExtent {
  /** Bytes. */
  readonly length: number;
  /** Meaning depends on the context; below 2^53. */
  readonly flags: number;
}

export interface RequestFields {
  /** NBD_CMD_*. */
  readonly command: number;
  /** NBD_CMD_FLAG_*. */
  readonly flags: number;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
  /** READ: where the data goes; WRITE: the data. The request's own until it has ended. */
  readonly buffer?: Buffer | undefined;
  /** WRITE: where the data comes from, in place of `buffer`. */
  readonly source?: PayloadSource | undefined;
  /** It is not sent again when a connection is lost under it, but fails. */
  readonly once?: boolean | undefined;
}

export class ClientRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  readonly buffer: Buffer | undefined;
  readonly source: PayloadSource | undefined;
  readonly once: boolean;
  readonly #settle: (error: Error | undefined) => void;

  /** How often it was sent. */
  attempts = 0;

  // Of the current attempt; a connection fills them.
  /** Slot and its use count: what the server echoes. */
  cookieLow = 0;
  cookieHigh = 0;
  /** Number of the write in which it leaves. */
  batch = 0;
  /** The source could not be read, so what was sent is wrong: the request fails with it. */
  sourceError: Error | undefined;
  /** Reads of the source that are under way, of earlier attempts, too; the request ends after them. */
  #reads = 0;
  #atEnd: (() => void) | undefined;
  /** Set when error chunks came; the request fails when the last chunk is there. */
  error: BlockError | undefined;
  errorChunks = 0;
  /** Structured reads: what has come. */
  covered: CoveredRanges | undefined;
  /** BLOCK_STATUS: extents by context id. */
  extents: Map<number, NbdExtent[]> | undefined;
  /** BLOCK_STATUS: the answer by name, when the request ended well. */
  statuses: Map<string, NbdExtent[]> | undefined;

  /** @param settle called once: without an error when the server said that all is done */
  constructor(fields: RequestFields, settle: (error: Error | undefined) => void) {
    this.command = fields.command;
    this.flags = fields.flags;
    this.offset = fields.offset;
    this.length = fields.length;
    this.buffer = fields.buffer;
    this.source = fields.source;
    this.once = fields.once === true;
    this.#settle = settle;
  }

  /** Bytes that go over the wire, either way. */
  get payloadLength(): number {
    return this.command === NBD_CMD_WRITE || this.command === NBD_CMD_READ ? this.length : 0;
  }

  /** Forgets what an earlier attempt brought. */
  restart(): void {
    this.attempts++;
    this.error = undefined;
    this.sourceError = undefined;
    this.errorChunks = 0;
    this.covered = this.command === NBD_CMD_READ ? new CoveredRanges() : undefined;
    this.extents = this.command === NBD_CMD_BLOCK_STATUS ? new Map() : undefined;
  }

  end(error?: BlockError): void {
    const settle = (): void => this.#settle(this.sourceError ?? error);
    if (this.#reads === 0) settle();
    else this.#atEnd = settle;
  }

  readBegins(): void {
    this.#reads++;
  }

  readEnds(): void {
    this.#reads--;
    if (this.#reads === 0) this.#atEnd?.();
  }

  /** For error texts: "NBD_CMD_READ of 4096 bytes at 0". */
  describe(): string {
    if (this.length === 0) return commandName(this.command);
    return `${commandName(this.command)} of ${this.length} bytes at ${this.offset}`;
  }
}

const CODES: Readonly<Record<number, readonly [ErrorCode, string]>> = {
  [NBD_EPERM]: ['DF_ACCESS', 'EPERM'],
  [NBD_EIO]: ['DF_IO', 'EIO'],
  [NBD_ENOMEM]: ['DF_NO_MEMORY', 'ENOMEM'],
  [NBD_EINVAL]: ['DF_INVALID', 'EINVAL'],
  [NBD_ENOSPC]: ['DF_NO_SPACE', 'ENOSPC'],
  [NBD_EOVERFLOW]: ['DF_TOO_LARGE', 'EOVERFLOW'],
  [NBD_ENOTSUP]: ['DF_NOT_SUPPORTED', 'ENOTSUP'],
  [NBD_ESHUTDOWN]: ['DF_SHUTDOWN', 'ESHUTDOWN'],
};

/**
 * What a server's error value means here.
 * @param error NBD_E*, or any other number: then it counts as NBD_EIO
 * @param message what the server said besides, '' for nothing
 */
export function serverError(request: ClientRequest, error: number, message: string): BlockError {
  const [code, errno] = CODES[error] ?? ['DF_IO', 'EIO'];
  const said = message.replace(/\p{Cc}+/gu, ' ').trim();
  const text = `the NBD server failed ${request.describe()} with ${nbdErrorName(error)}`;
  const { offset, length } = request;
  return new BlockError(code, said === '' ? text : `${text}: ${said}`, { offset, length, errno });
}
