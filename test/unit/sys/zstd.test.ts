// SPDX-License-Identifier: MIT
import * as zlib from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { loadZstd, type Zstd, zstdOfLibrary, zstdOfNode } from '../../../src/sys/zstd.js';
import { patternBytes } from '../../support/images.js';

const LENGTH = 65536;
const text = Buffer.alloc(LENGTH, 'words that come again and again, ');
/** A frame with nothing in it, 9 bytes. */
const EMPTY_FRAME = Buffer.from('28b52ffd2000010000', 'hex');

async function compress(zstd: Zstd, bytes: Buffer, lengthMax: number): Promise<Buffer | undefined> {
  const target = Buffer.alloc(lengthMax);
  const length = await zstd.compress(bytes, target);
  return length === undefined ? undefined : target.subarray(0, length);
}

async function decompress(zstd: Zstd, bytes: Buffer, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length, 0xee);
  await zstd.decompress(bytes, target);
  return target;
}

async function frameOf(bytes: Buffer): Promise<Buffer> {
  const frame = await compress(loadZstd(), bytes, bytes.byteLength - 1);
  if (frame === undefined) throw new Error('it does not shrink');
  return frame;
}

describe('zstd', () => {
  it('gives back what it was given, whatever follows', async () => {
    const frame = await frameOf(text);
    expect(frame.byteLength).toBeLessThan(1000);
    for (const tail of [Buffer.alloc(0), Buffer.alloc(5000), patternBytes(700, 1)]) {
      const got = await decompress(loadZstd(), Buffer.concat([frame, tail]), LENGTH);
      expect(got.equals(text)).toBe(true);
    }
  });

  it('says when the result would be too long', async () => {
    expect(await compress(loadZstd(), patternBytes(LENGTH, 2), LENGTH - 1)).toBeUndefined();
    const { byteLength } = await frameOf(text);
    expect(await compress(loadZstd(), text, byteLength - 1)).toBeUndefined();
  });

  it('refuses frames that are cut off or broken, or of another length', async () => {
    const frame = await frameOf(text);
    const zstd = loadZstd();
    for (const bad of [frame.subarray(0, -5), patternBytes(900, 3), Buffer.alloc(512)]) {
      await expect(decompress(zstd, bad, LENGTH)).rejects.toThrow();
    }
    await expect(decompress(zstd, frame, LENGTH / 2)).rejects.toThrow();
    await expect(decompress(zstd, frame, LENGTH * 2)).rejects.toThrow();
  });
});

describe('libzstd', () => {
  const zstd = zstdOfLibrary('libzstd.so.1');

  it('joins frames, but not any number of them', async () => {
    const frame = await frameOf(text);
    const two = await decompress(zstd, Buffer.concat([EMPTY_FRAME, frame, frame]), 2 * LENGTH);
    expect(two.equals(Buffer.concat([text, text]))).toBe(true);
    const many = Buffer.concat([...Array<Buffer>(64).fill(EMPTY_FRAME), frame]);
    await expect(decompress(zstd, many, LENGTH)).rejects.toThrow('the stream gives 0 bytes');
  });

  it('that is not there can not be used', () => {
    expect(() => zstdOfLibrary('libzstd-none.so.9')).toThrow(/cannot open shared object file/);
  });
});

describe('zstd of Node', () => {
  /** Another compression in the form of the newer releases' functions. */
  const newer = { zstdCompress: zlib.deflateRaw, zstdDecompress: zlib.inflateRaw };

  it('is not taken where it is not there', () => {
    expect(zstdOfNode({ zstdCompress: zlib.deflateRaw })).toBeUndefined();
  });

  it('keeps to lengths as the library does', async () => {
    const zstd = zstdOfNode(newer) ?? loadZstd();
    const compressed = await compress(zstd, text, LENGTH - 1);
    expect((await decompress(zstd, compressed ?? text, LENGTH)).equals(text)).toBe(true);
    expect(await compress(zstd, patternBytes(LENGTH, 4), LENGTH - 1)).toBeUndefined();
    await expect(decompress(zstd, compressed ?? text, LENGTH / 2)).rejects.toThrow();
    await expect(decompress(zstd, compressed ?? text, LENGTH * 2)).rejects.toThrow(
      `the stream gives ${LENGTH} bytes`,
    );
  });
});
