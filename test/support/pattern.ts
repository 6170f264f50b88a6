// SPDX-License-Identifier: MIT
/** Bytes that tell where they belong: every 8 have their number and `seed` in them. */
export function pattern(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at + 4 <= length; at += 4) {
    bytes.writeUInt32LE((Math.imul(at / 4 + 1, 2654435761) ^ (seed * 40503)) >>> 0, at);
  }
  return bytes;
}
