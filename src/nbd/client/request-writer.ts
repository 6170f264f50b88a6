// SPDX-License-Identifier: MIT
/**
 * Joins the requests of one turn of the event loop into one write: heads and small payloads are
 * copied into a batch buffer, large payloads go by reference.
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
import type { ClientRequest } from './request.js';
import type { Transport } from './transport.js';

const BATCH_LENGTH = NBD_CLIENT_RECEIVE_LENGTH;
/** Batch buffers kept for the next turns. */
const SPARE_MAX = 4;

interface BatchBuffer {
  readonly bytes: Buffer;
  readonly view: DataView;
}

export class RequestWriter {
  readonly #transport: Transport;
  readonly #extended: boolean;
  /** Called when a batch is with the kernel. */
  readonly #written: () => void;
  readonly #head = emptyRequestHead();
  readonly #spare: BatchBuffer[] = [];
  #batch: BatchBuffer | undefined;
  /** What of the batch is in `#pieces` already, and how far it is filled. */
  #cut = 0;
  #fill = 0;
  #pieces: Uint8Array[] = [];
  #used: BatchBuffer[] = [];
  #scheduled = false;
  #number = 1;
  #writtenNumber = 0;
  #stopped = false;

  constructor(transport: Transport, options: { extended: boolean; written: () => void }) {
    this.#transport = transport;
    this.#extended = options.extended;
    this.#written = options.written;
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
      this.#pieces.push(payload);
    }
    this.#schedule(options);
  }

  /** Nothing is sent any more. */
  stop(): void {
    this.#stopped = true;
    this.#pieces = [];
  }

  flush(): void {
    this.#scheduled = false;
    this.#cutPiece();
    if (this.#stopped || this.#pieces.length === 0) return;
    const pieces = this.#pieces;
    const used = this.#used;
    const number = this.#number++;
    if (this.#batch !== undefined) used.push(this.#batch);
    this.#batch = undefined;
    this.#pieces = [];
    this.#used = [];
    this.#transport.write(pieces, () => {
      this.#writtenNumber = number;
      for (const batch of used) if (this.#spare.length < SPARE_MAX) this.#spare.push(batch);
      this.#written();
    });
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
    this.#pieces.push(this.#batch.bytes.subarray(this.#cut, this.#fill));
    this.#cut = this.#fill;
  }
}

function newBatch(): BatchBuffer {
  const bytes = Buffer.allocUnsafeSlow(BATCH_LENGTH);
  return { bytes, view: new DataView(bytes.buffer) };
}
