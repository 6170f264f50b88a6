// SPDX-License-Identifier: MIT
/** Data of a WRITE that is not in memory: it goes from where it lies into the socket. */
import type { MaybePromise } from '../../base/maybe-promise.js';

/**
 * `send` is called only while everything before the payload is with the kernel. A request that is sent
 * again asks for all of its bytes anew, and what lies there may have changed meanwhile.
 */
export interface PayloadSource {
  /** Bytes; more than 0. */
  readonly length: number;
  /**
   * Puts a head (of 0 bytes, perhaps), then payload, into a non-blocking stream socket, as much as it
   * takes; never waits, never throws.
   * @param socket descriptor @param from of the payload's first byte @param length at most, bytes
   * @returns bytes taken, the head's included; 0: the socket is full; below 0: nothing was done, and
   * `read` has to do it
   */
  send(socket: number, head: Uint8Array, from: number, length: number): number;
  /** Reads all of `target`. @throws what the write then fails with */
  read(from: number, target: Buffer): MaybePromise<void>;
}

/** A part of a payload. @param from bytes @param length bytes */
export function slicePayload(source: PayloadSource, from: number, length: number): PayloadSource {
  if (from === 0 && length === source.length) return source;
  return {
    length,
    send: (socket, head, at, count) => source.send(socket, head, from + at, count),
    read: (at, target) => source.read(from + at, target),
  };
}
