// SPDX-License-Identifier: MIT
/** A byte stream to one client, whatever carries it. */
import type { ByteSink } from './outbox.js';

export type TransportKind = 'tcp' | 'unix' | 'websocket' | 'stream';

/** Who reads from a transport. */
export interface TransportOwner {
  /** Where the next bytes shall go; never empty. Asked anew after each `received`. */
  target(): Buffer;
  /** `length` bytes came into the target. False: no more until `resume`. */
  received(length: number): boolean;
  /** All that `write` could not place at once is taken now. */
  sent(): void;
  /** The client will send no more. */
  ended(): void;
  /** The transport is gone, with the error that ended it if there was one. */
  closed(error?: Error): void;
}

/** Bytes that a socket's kernel has taken and its peer has not; undefined where nobody can tell. */
export type QueuedBytes = (fd: number) => number | undefined;

export interface Transport extends ByteSink {
  readonly kind: TransportKind;
  /** The client's address for people: '192.0.2.7:51234', '/run/nbd.sock'. */
  readonly peer: string;
  /** The socket's descriptor, where there is one and Node tells it. */
  readonly fd?: number | undefined;
  /** Begins to deliver to `owner`. Called once, before anything else. */
  start(owner: TransportOwner): void;
  resume(): void;
  /** Stops reading; used where `received` can't say so. */
  pause(): void;
  /**
   * Closes once everything written is taken: by the peer, where `queued` tells that, otherwise it
   * waits a little for the peer to close as well.
   */
  finish(queued?: QueuedBytes): void;
  /** Closes at once. */
  destroy(): void;
}
