// SPDX-License-Identifier: MIT
import { randomFillSync } from 'node:crypto';
import { open } from 'node:fs/promises';
import path from 'node:path';

export interface DemoImages {
  readonly source: string;
  readonly target: string;
  /** What the source holds; whoever writes to it keeps this up to date. */
  readonly content: Buffer;
}

/** @param size bytes; the first half is random data, the second a hole */
export async function makeImages(folder: string, size: number): Promise<DemoImages> {
  const content = Buffer.alloc(size);
  randomFillSync(content, 0, size / 2);
  const source = path.join(folder, 'a.img');
  const target = path.join(folder, 'b.img');
  const file = await open(source, 'wx');
  await file.write(content, 0, size / 2, 0);
  await file.truncate(size);
  await file.close();
  const empty = await open(target, 'wx');
  await empty.truncate(size);
  await empty.close();
  return { source, target, content };
}

/** Where a file first differs from `content`, bytes; undefined when it does not. */
export async function imageDiffers(name: string, content: Buffer): Promise<number | undefined> {
  const file = await open(name, 'r');
  try {
    const { size } = await file.stat();
    const piece = Buffer.alloc(1 << 20);
    for (let offset = 0; offset < content.byteLength; offset += piece.byteLength) {
      const { bytesRead } = await file.read(piece, 0, piece.byteLength, offset);
      const expected = content.subarray(offset, offset + piece.byteLength);
      if (!expected.equals(piece.subarray(0, bytesRead))) return offset;
    }
    return size === content.byteLength ? undefined : content.byteLength;
  } finally {
    await file.close();
  }
}
