// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { parseSize, sizeText } from '../../../../src/cli/img/sizes.js';

describe('sizes on the command line', () => {
  it.each([
    ['0', 0],
    ['512', 512],
    ['512b', 512],
    ['1k', 1024],
    ['1.5M', 1_572_864],
    ['10G', 10_737_418_240],
    ['2t', 2_199_023_255_552],
    ['0x1000', 4096],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSize(text, 'size')).toBe(bytes);
  });

  it.each(['', '-1', 'M', '1x', '1 M', '9E', '1.3', '1e3', '99999999999999999999'])(
    '%j is none',
    (text) => {
      expect(() => parseSize(text, 'the size')).toThrow('the size');
    },
  );
});

describe('sizes for people', () => {
  it.each([
    [0, '0 B'],
    [512, '512 B'],
    [1000, '0.977 KiB'],
    [1536, '1.5 KiB'],
    [200_704, '196 KiB'],
    [67_108_864, '64 MiB'],
    [10_737_418_240, '10 GiB'],
  ])('%d bytes are %s', (bytes, text) => {
    expect(sizeText(bytes)).toBe(text);
  });
});
