// SPDX-License-Identifier: MIT
import * as zlib from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { loadZstd, zstdOfLibrary, zstdOfNode } from '../../../src/sys/zstd.js';
import { patternBytes } from '../../support/images.js';

const LENGTH = 65536;
const text = Buffer.alloc(LENGTH, 'words that come again and again, ');
/** A frame with nothing in it, 9 bytes. */
const EMPTY_FRAME = Buffer.from('28b52ffd2000010000', 'hex');

async function frameOf(bytes: Buffer): Promise<Buffer> {
  const frame = await loadZstd().compress(bytes, bytes.byteLength - 1);
  if (frame === undefined) throw new Error('it does not shrink');
  return Buffer.from(frame);
}

describe('zstd', () => {
  it('gives back what it was given, whatever follows', async () => {
    const frame = await frameOf(text);
    expect(frame.byteLength).toBeLessThan(1000);
    for (const tail of [Buffer.alloc(0), Buffer.alloc(5000), patternBytes(700, 1)]) {
      const got = await loadZstd().decompress(Buffer.concat([frame, tail]), LENGTH);
      expect(got.equals(text)).toBe(true);
    }
  });

  it('says when the result would be too long', async () => {
    expect(await loadZstd().compress(patternBytes(LENGTH, 2), LENGTH - 1)).toBeUndefined();
    const { byteLength } = await frameOf(text);
    expect(await loadZstd().compress(text, byteLength - 1)).toBeUndefined();
  });

  it('refuses frames that are cut off or broken, or of another length', async () => {
    const frame = await frameOf(text);
    const zstd = loadZstd();
    for (const bad of [frame.subarray(0, -5), patternBytes(900, 3), Buffer.alloc(512)]) {
      await expect(zstd.decompress(bad, LENGTH)).rejects.toThrow();
    }
    await expect(zstd.decompress(frame, LENGTH / 2)).rejects.toThrow();
    await expect(zstd.decompress(frame, LENGTH * 2)).rejects.toThrow();
  });
});

describe('libzstd', () => {
  const zstd = zstdOfLibrary('libzstd.so.1');

  it('joins frames, but not any number of them', async () => {
    const frame = await frameOf(text);
    const two = await zstd.decompress(Buffer.concat([EMPTY_FRAME, frame, frame]), 2 * LENGTH);
    expect(two.equals(Buffer.concat([text, text]))).toBe(true);
    const many = Buffer.concat([...Array<Buffer>(64).fill(EMPTY_FRAME), frame]);
    await expect(zstd.decompress(many, LENGTH)).rejects.toThrow('the stream gives 0 bytes');
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
    const zstd = zstdOfNode(newer);
    const compressed = await zstd?.compress(text, LENGTH - 1);
    expect((await zstd?.decompress(compressed ?? text, LENGTH))?.equals(text)).toBe(true);
    expect(await zstd?.compress(patternBytes(LENGTH, 4), LENGTH - 1)).toBeUndefined();
    await expect(zstd?.decompress(compressed ?? text, LENGTH / 2)).rejects.toThrow();
    await expect(zstd?.decompress(compressed ?? text, LENGTH * 2)).rejects.toThrow(
      `the stream gives ${LENGTH} bytes`,
    );
  });
});
