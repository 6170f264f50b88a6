// SPDX-License-Identifier: MIT
/** Data that passes from a file to where it is wanted without passing through us. */
import type { MaybePromise } from '../base/maybe-promise.js';

/** An open file of the host, as far as its data may be passed on. */
export interface RangeFile {
  /** Only for calls that are over within the turn, or before the range's request has ended. */
  readonly fd: number;
  readonly path: string;
  /**
   * Reads as far as that needs no waiting.
   * @returns bytes read; 0 past the end; -1 when it would have to wait, failed, or can't be told
   */
  peek(offset: number, buffer: Buffer): number;
  /** Reads all of `buffer`; past the end of the file are zeroes. @throws BlockError naming the file */
  read(offset: number, buffer: Buffer): MaybePromise<void>;
}

/** Bytes of a node that lie in a regular file of the host as they are. */
export interface FileRange {
  readonly file: RangeFile;
  /** Of the first byte in the file. */
  readonly offset: number;
  /** Bytes, at least 1. Pages behind it belong to others: nothing there may be lent or shared. */
  readonly length: number;
}

/**
 * What is done with a range; the request goes on until it returns, or until its promise is settled.
 * @returns bytes from the start of the range that were dealt with; 0: none
 */
export type RangeUse = (range: FileRange) => MaybePromise<number>;

/** A reply to a read, on its way to a client without being copied. */
export interface SendRequest {
  /** Descriptor of a non-blocking UNIX stream socket of which everything sent before is taken. */
  readonly socket: number;
  /** Of the first data byte. */
  readonly offset: number;
  /** A filled head, and behind it as much room as there are data bytes. */
  readonly reply: Buffer;
  /** Bytes, at least 1. */
  readonly headLength: number;
  /** Refuse (0) unless it is certain that some byte is not zero. */
  readonly notAllZero: boolean;
}
