// SPDX-License-Identifier: MIT
import { inflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import {
  QCOW2_COMPRESSION_ZLIB,
  QCOW2_COMPRESSION_ZSTD,
} from '../../../../../protocol/qcow2/header.js';
import { codecFor } from '../../../../../src/block/driver/qcow2/codec.js';
import { patternBytes } from '../../../../support/images.js';
import { KIB } from '../../../../support/qcow2.js';

describe('compression by zlib', () => {
  const codec = codecFor(QCOW2_COMPRESSION_ZLIB);

  it('looks no further back than 4 KiB, which is all that other readers keep', async () => {
    const noise = patternBytes(8 * KIB, 1);
    const cluster = Buffer.concat([noise, noise, Buffer.alloc(48 * KIB)]);
    const target = Buffer.alloc(64 * KIB);
    const compressed = target.subarray(0, (await codec.compress(cluster, target)) ?? 0);
    expect(compressed.byteLength).toBeGreaterThan(16 * KIB);
    expect(inflateRawSync(compressed, { windowBits: 12 }).equals(cluster)).toBe(true);
  });

  it('gives nothing for what does not shrink', async () => {
    expect(await codec.compress(patternBytes(64 * KIB, 2), Buffer.alloc(64 * KIB))).toBeUndefined();
  });
});

describe('compression by zstd', () => {
  it('is refused, naming what is missing, where there is none', () => {
    const load = () => {
      throw new Error('libzstd.so.1: cannot open shared object file');
    };
    expect(() => codecFor(QCOW2_COMPRESSION_ZSTD, load)).toThrow(
      'qcow2: compression by zstd needs the library libzstd.so.1, or Node.js 22.15',
    );
  });
});
