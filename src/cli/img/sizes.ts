// SPDX-License-Identifier: MIT
/** Sizes as qemu-img reads and writes them. */
import { BlockError } from '../../base/errors.js';
import { NODE_SIZE_MAX } from '../../base/limits.js';

const SUFFIXES = ['', 'k', 'M', 'G', 'T', 'P', 'E'];
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/**
 * "10G", "1.5M", "0x1000", "512": bytes; suffixes are powers of 1024, upper or lower case. As for
 * qemu-img, "1.3M" is the nearest whole number of bytes, and a sign or blanks may go before.
 * @throws BlockError DF_INVALID naming what it is for
 */
export function parseSize(text: string, what: string): number {
  const match = /^\s*\+?(?:(0x[0-9a-f]+)|(\d+(?:\.\d*)?))([bkmgtpe]?)$/i.exec(text);
  if (match === null) {
    throw new BlockError(
      'DF_INVALID',
      `${what} '${text}': a number of bytes, with k, M, G, T, P or E`,
    );
  }
  const [, hex, decimal, suffix = ''] = match;
  const unit = suffix.toLowerCase() === 'b' ? '' : suffix;
  const power = SUFFIXES.findIndex((known) => known.toLowerCase() === unit.toLowerCase());
  const exact = Number(hex ?? decimal) * 1024 ** power;
  const bytes = unit === '' ? exact : Math.round(exact);
  if (bytes > NODE_SIZE_MAX) {
    throw new BlockError('DF_INVALID', `${what} '${text}' is more than ${NODE_SIZE_MAX} bytes`);
  }
  if (!Number.isInteger(bytes)) {
    throw new BlockError('DF_INVALID', `${what} '${text}' is no whole number of bytes`);
  }
  return bytes;
}

/** 67108864 → "64 MiB": three digits, as in qemu-img's text for people. */
export function sizeText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toPrecision(3))} ${UNITS[unit]}`;
}
