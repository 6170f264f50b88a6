// SPDX-License-Identifier: MIT
/**
 * Joins the requests of one turn of the event loop into one write: heads and small payloads are
 * copied into a batch buffer, large payloads go by reference. Payloads that a source sends by itself
 * come between two such writes, and hold up what follows.
 */
import { NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE } from '../../../protocol/nbd/constants.js';
import {
  emptyRequestHead,
  encodeExtendedRequest,
  encodeRequest,
  NBD_EXTENDED_REQUEST,
  NBD_REQUEST,
} from '../../../protocol/nbd/transmission.js';
import { NBD_CLIENT_COPY_MAX, NBD_CLIENT_RECEIVE_LENGTH } from '../../base/limits.js';
import { PayloadSender } from './payload-sender.js';
import type { ClientRequest } from './request.js';
import type { Transport } from './transport.js';

const BATCH_LENGTH = NBD_CLIENT_RECEIVE_LENGTH;
/** Batch buffers kept for the next turns. */
const SPARE_MAX = 4;

interface BatchBuffer {
  readonly bytes: Buffer;
  readonly view: DataView;
}

const NO_HEAD = new Uint8Array(0);

/** Bytes, or a request whose payload its source sends. */
type Part = Uint8Array | ClientRequest;

interface Batch {
  readonly number: number;
  readonly parts: Part[];
  readonly used: BatchBuffer[];
  readonly hasSource: boolean;
}

export class RequestWriter {
  readonly #transport: Transport;
  readonly #payloads: PayloadSender;
  readonly #extended: boolean;
  /** Called when a batch, or a piece of one, is with the kernel. */
  readonly #written: () => void;
  readonly #head = emptyRequestHead();
  readonly #spare: BatchBuffer[] = [];
  #batch: BatchBuffer | undefined;
  /** What of the batch is in `#parts` already, and how far it is filled. */
  #cut = 0;
  #fill = 0;
  #parts: Part[] = [];
  #hasSource = false;
  #used: BatchBuffer[] = [];
  #scheduled = false;
  #number = 1;
  #writtenNumber = 0;
  #stopped = false;
  /** What has to wait while a batch with sources is being sent. */
  #waiting: Batch[] = [];
  #sending = false;
  /** Writes that are not with the kernel yet. */
  #unsent = 0;

  constructor(transport: Transport, options: { extended: boolean; written: () => void }) {
    this.#transport = transport;
    this.#extended = options.extended;
    this.#written = options.written;
    this.#payloads = new PayloadSender(transport, options.written);
  }

  /** True when everything of the request has left our buffers. */
  isWritten(request: ClientRequest): boolean {
    return request.batch <= this.#writtenNumber;
  }

  /**
   * Adds a request; it leaves at the end of this turn at the latest.
   * @param options `now`: nothing else is on its way, so waiting for company is no use
   */
  add(request: ClientRequest, options: { now: boolean }): void {
    const payload = request.command === NBD_CMD_WRITE ? request.buffer : undefined;
    const copied = payload !== undefined && payload.byteLength <= NBD_CLIENT_COPY_MAX;
    const batch = this.#room(NBD_EXTENDED_REQUEST.size + (copied ? payload.byteLength : 0));
    request.batch = this.#number;
    this.#fill = this.#encode(request, batch.view, this.#fill);
    if (copied) {
      payload.copy(batch.bytes, this.#fill);
      this.#fill += payload.byteLength;
    } else if (payload !== undefined) {
      this.#cutPiece();
      this.#parts.push(payload);
    } else if (request.source !== undefined) {
      this.#cutPiece();
      this.#parts.push(request);
      this.#hasSource = true;
    }
    this.#schedule(options);
  }

  /** Nothing is sent any more. */
  stop(): void {
    this.#stopped = true;
    this.#parts = [];
    this.#waiting = [];
    this.#payloads.stop();
  }

  flush(): void {
    this.#scheduled = false;
    this.#cutPiece();
    if (this.#stopped || this.#parts.length === 0) return;
    const parts = this.#parts;
    const used = this.#used;
    if (this.#batch !== undefined) used.push(this.#batch);
    const batch = { number: this.#number++, parts, used, hasSource: this.#hasSource };
    this.#batch = undefined;
    this.#parts = [];
    this.#used = [];
    this.#hasSource = false;
    this.#waiting.push(batch);
    this.#sendWaiting();
  }

  /** Batches without sources need not wait for each other: the transport keeps their order. */
  #sendWaiting(): void {
    while (!this.#sending) {
      const batch = this.#waiting.shift();
      if (batch === undefined) return;
      this.#sending = batch.hasSource;
      this.#sendFrom(batch, 0);
    }
  }

  /** Sends the parts from the one with this index on. */
  #sendFrom(batch: Batch, from: number): void {
    if (this.#stopped) return;
    const { parts } = batch;
    let at = from;
    const pieces: Uint8Array[] = [];
    for (; at < parts.length; at++) {
      const part = parts[at];
      if (!(part instanceof Uint8Array)) break;
      pieces.push(part);
    }
    const request = parts[at];
    const goOn = (head: Uint8Array): void => {
      if (this.#stopped) return;
      if (request === undefined) this.#ended(batch);
      else this.#sendPayload(request, head, () => this.#sendFrom(batch, at + 1));
    };
    // What comes right before a payload leaves with it.
    const last = this.#unsent === 0 && request !== undefined ? pieces.pop() : undefined;
    if (pieces.length === 0) goOn(last ?? NO_HEAD);
    else this.#write(pieces, () => goOn(last ?? NO_HEAD));
  }

  #sendPayload(request: Part, head: Uint8Array, done: () => void): void {
    if (request instanceof Uint8Array || request.source === undefined) return;
    this.#payloads.send({ request, source: request.source }, head, done);
  }

  #write(pieces: readonly Uint8Array[], done: () => void): void {
    this.#unsent++;
    this.#transport.write(pieces, () => {
      this.#unsent--;
      done();
    });
  }

  #ended({ number, used, hasSource }: Batch): void {
    this.#writtenNumber = number;
    for (const buffer of used) if (this.#spare.length < SPARE_MAX) this.#spare.push(buffer);
    if (hasSource) {
      this.#sending = false;
      this.#sendWaiting();
    }
    this.#written();
  }

  #schedule(options: { now: boolean }): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    if (options.now) queueMicrotask(() => this.flush());
    else setImmediate(() => this.flush());
  }

  #encode(request: ClientRequest, view: DataView, at: number): number {
    const head = this.#head;
    const withLength = this.#extended && request.command === NBD_CMD_WRITE;
    head.type = request.command;
    head.flags = request.flags | (withLength ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    head.cookieHigh = request.cookieHigh;
    head.cookieLow = request.cookieLow;
    head.offset = request.offset;
    head.length = request.length;
    if (this.#extended) encodeExtendedRequest(view, at, head);
    else encodeRequest(view, at, head);
    return at + (this.#extended ? NBD_EXTENDED_REQUEST.size : NBD_REQUEST.size);
  }

  #room(length: number): BatchBuffer {
    if (this.#batch !== undefined && this.#fill + length <= BATCH_LENGTH) return this.#batch;
    this.#cutPiece();
    if (this.#batch !== undefined) this.#used.push(this.#batch);
    this.#batch = this.#spare.pop() ?? newBatch();
    this.#fill = 0;
    this.#cut = 0;
    return this.#batch;
  }

  #cutPiece(): void {
    if (this.#batch === undefined || this.#fill === this.#cut) return;
    this.#parts.push(this.#batch.bytes.subarray(this.#cut, this.#fill));
    this.#cut = this.#fill;
  }
}

function newBatch(): BatchBuffer {
  const bytes = Buffer.allocUnsafeSlow(BATCH_LENGTH);
  return { bytes, view: new DataView(bytes.buffer) };
}
