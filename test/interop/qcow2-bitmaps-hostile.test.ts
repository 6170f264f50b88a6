// SPDX-License-Identifier: MIT
/** Images whose bitmaps lie: each lie is found when the image is opened, and nothing is changed. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { QCOW2_BITMAP_ENTRY, QCOW2_BITMAPS_EXTENSION } from '../../protocol/qcow2/bitmaps.js';
import { QCOW2_EXT_BITMAPS } from '../../protocol/qcow2/extensions.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { createImage, MIB, openImage, qemuIo } from '../support/qcow2.js';
import { testScope } from '../support/temp.js';

/** Where the parts of the image's bitmaps lie, bytes. */
interface Places {
  readonly extension: number;
  readonly entry: number;
  readonly table: number;
}

function placesOf(bytes: Buffer): Places {
  const magic = Buffer.alloc(8);
  magic.writeUInt32BE(QCOW2_EXT_BITMAPS);
  magic.writeUInt32BE(QCOW2_BITMAPS_EXTENSION.size, 4);
  const extension = bytes.indexOf(magic) + 8;
  const directory = QCOW2_BITMAPS_EXTENSION.decode(bytes.subarray(extension));
  const entry = Number(directory.directoryOffset);
  const { tableOffset } = QCOW2_BITMAP_ENTRY.decode(bytes.subarray(entry));
  return { extension, entry, table: Number(tableOffset) };
}

type Lie = readonly [what: string, change: (bytes: Buffer, places: Places) => void, text: string];

const LIES: readonly Lie[] = [
  ['a reserved field', (b, p) => b.writeUInt32BE(1, p.extension + 4), 'Reserved field is not zero'],
  ['65536 bitmaps', (b, p) => b.writeUInt32BE(65536, p.extension), 'exceeding the QEMU supported'],
  ['no bitmaps', (b, p) => b.writeUInt32BE(0, p.extension), 'with zero bitmaps'],
  ['more bitmaps', (b, p) => b.writeUInt32BE(3, p.extension), 'Less bitmaps found'],
  ['fewer bitmaps', (b, p) => b.writeUInt32BE(1, p.extension), 'More bitmaps found'],
  ['an empty directory', (b, p) => b.writeBigUInt64BE(0n, p.extension + 8), 'size is zero'],
  [
    'a directory of 2^63 bytes',
    (b, p) => b.writeBigUInt64BE(2n ** 63n, p.extension + 8),
    'exceeds the maximum supported size',
  ],
  [
    'a directory that ends within an entry',
    (b, p) => b.writeBigUInt64BE(40n, p.extension + 8),
    'Broken bitmap directory',
  ],
  [
    'an unaligned directory',
    (b, p) => b.writeBigUInt64BE(1n, p.extension + 16),
    'invalid bitmap directory offset',
  ],
  [
    'a directory past the end',
    (b, p) => b.writeBigUInt64BE(2n ** 60n, p.extension + 16),
    'Failed to read bitmap directory',
  ],
  ['a table at 0', (b, p) => b.writeBigUInt64BE(0n, p.entry), 'satisfy the constraints'],
  ['an unaligned table', (b, p) => b.writeBigUInt64BE(7n, p.entry), 'satisfy the constraints'],
  ['a table past the end', (b, p) => b.writeBigUInt64BE(2n ** 50n, p.entry), 'outside the file'],
  ['a table at 2^63', (b, p) => b.writeBigUInt64BE(2n ** 63n, p.entry), 'satisfy the constraints'],
  ['an empty table', (b, p) => b.writeUInt32BE(0, p.entry + 8), 'satisfy the constraints'],
  ['a long table', (b, p) => b.writeUInt32BE(9, p.entry + 8), "Could not read bitmap 'a'"],
  ['a huge table', (b, p) => b.writeUInt32BE(2 ** 32 - 1, p.entry + 8), 'satisfy the constraints'],
  ['unknown flags', (b, p) => b.writeUInt32BE(8, p.entry + 12), 'satisfy the constraints'],
  ['another type', (b, p) => b.writeUInt8(2, p.entry + 16), 'satisfy the constraints'],
  ['a granularity of 256', (b, p) => b.writeUInt8(8, p.entry + 17), 'satisfy the constraints'],
  ['a granularity of 2^63', (b, p) => b.writeUInt8(63, p.entry + 17), 'satisfy the constraints'],
  ['no name', (b, p) => b.writeUInt16BE(0, p.entry + 18), 'satisfy the constraints'],
  ['a long name', (b, p) => b.writeUInt16BE(65535, p.entry + 18), 'Broken bitmap directory'],
  ['extra data', (b, p) => b.writeUInt32BE(8, p.entry + 20), 'extra data'],
  ['4 GiB of extra data', (b, p) => b.writeUInt32BE(2 ** 32 - 1, p.entry + 20), 'Broken'],
  ['two of one name', (b, p) => b.write('b', p.entry + 24), 'Bitmap already exists: b'],
  ['a name that is no text', (b, p) => b.writeUInt8(0xff, p.entry + 24), 'constraints'],
  ['reserved bits in a table', (b, p) => b.writeUInt8(1, p.table), 'bitmap_table'],
  ['an offset that is all ones', (b, p) => b.writeUInt8(1, p.table + 7), 'bitmap_table'],
  ['a cluster past the end', (b, p) => b.writeUInt8(1, p.table + 1), "Could not read bitmap 'a'"],
];

/** It takes such a name as it is, and what lies past the end is all clean for it. */
const TAKEN_BY_QEMU = new Set([
  'a name that is no text',
  'a table past the end',
  'a cluster past the end',
]);

for (const [what, change, text] of LIES) {
  it(`refuses an image with ${what}`, async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'image');
    await createImage(path, 1 * MIB, 'cluster_size=4k');
    await runPeer('qemu-img', ['bitmap', '--add', path, 'a']);
    await runPeer('qemu-img', ['bitmap', '--add', path, 'b']);
    await qemuIo(path, ['write 0 64k']);
    const bytes = await readFile(path);
    change(bytes, placesOf(bytes));
    await writeFile(path, bytes);
    await expect(openImage(path)).rejects.toThrow(text);
    expect((await readFile(path)).equals(bytes)).toBe(true);
    const { code } = await tryPeer('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', path]);
    expect(code === 0).toBe(TAKEN_BY_QEMU.has(what));
  });
}
