// SPDX-License-Identifier: MIT
import { type FileHandle, open } from 'node:fs/promises';

export const KIB = 1024;
export const MIB = 1024 * KIB;

/** A range of an image that holds data; what no range covers is a hole. Bytes. */
export interface DataRange {
  readonly offset: number;
  readonly length: number;
}

/** Repeatable bytes without a zero run: a xorshift generator that is seeded by the caller. */
export function patternBytes(length: number, seed: number): Buffer {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return Buffer.from(words.buffer, 0, length);
}

/** Creates a sparse raw image with repeatable data in some ranges. */
export async function makeImage(
  path: string,
  options: { readonly size: number; readonly data?: readonly DataRange[]; readonly seed?: number },
): Promise<void> {
  const file = await open(path, 'wx');
  try {
    await file.truncate(options.size);
    const seed = options.seed ?? 1;
    for (const [index, { offset, length }] of (options.data ?? []).entries()) {
      await writeFully(file, patternBytes(length, seed * 1000 + index), offset);
    }
  } finally {
    await file.close();
  }
}

async function writeFully(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}

/** Reads a part of a file. @throws Error when the file is shorter */
export async function readRange(path: string, offset: number, length: number): Promise<Buffer> {
  const file = await open(path, 'r');
  try {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
      if (bytesRead === 0) throw new Error(`${path} ends at ${offset + done}`);
      done += bytesRead;
    }
    return bytes;
  } finally {
    await file.close();
  }
}

/** Bytes of storage that a file occupies, which is less than its size where it has holes. */
export async function allocatedBytes(path: string): Promise<number> {
  const file = await open(path, 'r');
  try {
    return (await file.stat()).blocks * 512;
  } finally {
    await file.close();
  }
}

/**
 * Compares two files of any size.
 * @returns offset of the first byte that differs (the shorter size when one is a prefix of the
 *   other), or undefined when they are identical
 */
export async function firstDifference(left: string, right: string): Promise<number | undefined> {
  const step = 4 * MIB;
  const [a, b] = await Promise.all([open(left, 'r'), open(right, 'r')]);
  try {
    const [bufferA, bufferB] = [Buffer.alloc(step), Buffer.alloc(step)];
    for (let at = 0; ; at += step) {
      const [lengthA, lengthB] = [await fill(a, bufferA, at), await fill(b, bufferB, at)];
      const common = Math.min(lengthA, lengthB);
      if (bufferA.compare(bufferB, 0, common, 0, common) !== 0) {
        for (let i = 0; i < common; i++) if (bufferA[i] !== bufferB[i]) return at + i;
      }
      if (lengthA !== lengthB) return at + common;
      if (lengthA < step) return undefined;
    }
  } finally {
    await Promise.all([a.close(), b.close()]);
  }
}

async function fill(file: FileHandle, buffer: Buffer, offset: number): Promise<number> {
  let done = 0;
  while (done < buffer.length) {
    const { bytesRead } = await file.read(buffer, done, buffer.length - done, offset + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
