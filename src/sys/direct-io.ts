// SPDX-License-Identifier: MIT
/** What O_DIRECT asks of offsets, lengths and memory: found out by trying, as no call tells it everywhere. */
import * as fs from 'node:fs';
import { BlockError } from '../base/errors.js';
import { addressOf, EINVAL, SystemError } from './linux.js';
import { fsCall } from './pool.js';

export interface DirectAlignment {
  /** Of offsets and lengths, bytes. */
  readonly request: number;
  /** Of the first byte of a buffer in memory, bytes. */
  readonly memory: number;
}

/** Tried from the smallest up; 1 means that this file takes anything. */
const ALIGNMENTS = [1, 512, 1024, 2048, 4096] as const;
const ALIGNMENT_MAX = 4096;

/** @throws BlockError DF_NOT_SUPPORTED when no alignment works */
export async function probeDirectAlignment(fd: number, path: string): Promise<DirectAlignment> {
  const buffer = allocateAligned(2 * ALIGNMENT_MAX, ALIGNMENT_MAX);
  // An answer of 1 may come from an empty file, which says nothing of later: then the safe value.
  const request = await first((length) => reads(fd, buffer.subarray(0, length)));
  const memory = await first((at) => reads(fd, buffer.subarray(at, at + ALIGNMENT_MAX)));
  if (request === undefined || memory === undefined) {
    const hint = 'Try cache.direct=off';
    throw new BlockError('DF_NOT_SUPPORTED', 'Could not find working O_DIRECT alignment', {
      path,
      hint,
    });
  }
  const safe = request === 1 ? ALIGNMENT_MAX : request;
  return { request: safe, memory: memory === 1 ? safe : memory };
}

async function first(works: (alignment: number) => Promise<boolean>): Promise<number | undefined> {
  for (const alignment of ALIGNMENTS) if (await works(alignment)) return alignment;
  return undefined;
}

async function reads(fd: number, buffer: Buffer): Promise<boolean> {
  try {
    await fsCall<number>((done) => fs.read(fd, buffer, 0, buffer.byteLength, 0, done));
    return true;
  } catch (error) {
    return !(error instanceof SystemError && error.errno === EINVAL);
  }
}

/** A buffer whose first byte lies at a multiple of `alignment`; its content is zero. */
export function allocateAligned(length: number, alignment: number): Buffer {
  const whole = Buffer.alloc(length + alignment);
  const past = addressOf(whole) % alignment;
  const start = past === 0 ? 0 : alignment - past;
  return whole.subarray(start, start + length);
}
