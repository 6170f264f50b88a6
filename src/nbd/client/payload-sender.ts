// SPDX-License-Identifier: MIT
/**
 * Sends a payload from its source into a connection's socket. The source fills the socket by itself;
 * then a small piece goes through Node, whose callback tells when there is room again.
 */
import { toError } from '../../base/errors.js';
import { NBD_CLIENT_PAYLOAD_PIECE } from '../../base/limits.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { PayloadSource } from './payload.js';
import type { ClientRequest } from './request.js';
import type { Transport } from './transport.js';

const NO_HEAD = new Uint8Array(0);

export class PayloadSender {
  readonly #transport: Transport;
  /** Called when more of a payload is with the kernel. */
  readonly #progress: () => void;
  /** In use from `read` until the transport has sent it. */
  #piece: Buffer | undefined;
  #stopped = false;

  constructor(transport: Transport, progress: () => void) {
    this.#transport = transport;
    this.#progress = progress;
  }

  /**
   * Sends a head and the whole payload; all that was written before is with the kernel, and nothing else
   * is written meanwhile. Where the source can't be read, zeroes follow, since the head has promised data:
   * `request.sourceError` says so.
   * @param done called when all is with the kernel; never after `stop`, or when the connection is lost
   */
  send(payload: Payload, head: Uint8Array, done: () => void): void {
    const work = { ...payload, done, direct: true };
    const taken = this.#sendDirectly(work, head, 0);
    const rest = head.subarray(Math.min(taken, head.byteLength));
    const sent = Math.max(taken - head.byteLength, 0);
    if (rest.byteLength === 0) this.#goOn(work, sent);
    else this.#write(rest, () => this.#sendFrom(work, sent));
  }

  /** Nothing is sent any more. */
  stop(): void {
    this.#stopped = true;
  }

  #sendFrom(work: Work, from: number): void {
    this.#goOn(work, from + this.#sendDirectly(work, NO_HEAD, from));
  }

  /** The socket is full, or all has been sent. */
  #goOn(work: Work, at: number): void {
    const { length } = work.source;
    if (at === length) {
      work.done();
      return;
    }
    this.#piece ??= Buffer.allocUnsafeSlow(NBD_CLIENT_PAYLOAD_PIECE);
    const piece = this.#piece.subarray(0, Math.min(this.#piece.byteLength, length - at));
    const send = (): void => this.#write(piece, () => this.#sendFrom(work, at + piece.byteLength));
    const pending = this.#read(work, at, piece);
    if (pending === undefined) send();
    else void pending.then(send);
  }

  /** Fills the piece, with zeroes where the source can't be read. Never fails. */
  #read({ request, source }: Work, at: number, piece: Buffer): MaybePromise<void> {
    const failed = (error: unknown): void => {
      if (!this.#stopped) request.sourceError ??= toError(error);
      piece.fill(0);
    };
    if (request.sourceError !== undefined) {
      piece.fill(0);
      return;
    }
    try {
      const pending = source.read(at, piece);
      if (pending === undefined) return;
      request.readBegins();
      return pending.catch(failed).finally(() => request.readEnds());
    } catch (error) {
      failed(error);
    }
  }

  /** @returns how many bytes the socket took, the head's included */
  #sendDirectly(work: Work, head: Uint8Array, from: number): number {
    const socket = this.#transport.fd;
    if (socket === undefined || !work.direct || work.request.sourceError !== undefined) return 0;
    const taken = work.source.send(socket, head, from, work.source.length - from);
    if (taken >= 0) return taken;
    work.direct = false;
    return 0;
  }

  #write(bytes: Uint8Array, done: () => void): void {
    if (this.#stopped) return;
    this.#transport.write([bytes], () => {
      if (this.#stopped) return;
      this.#progress();
      done();
    });
  }
}

interface Payload {
  readonly request: ClientRequest;
  readonly source: PayloadSource;
}

interface Work extends Payload {
  readonly done: () => void;
  /** The source may still be able to do it by itself. */
  direct: boolean;
}
