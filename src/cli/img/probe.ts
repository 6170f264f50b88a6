// SPDX-License-Identifier: MIT
/** Which format an image has, by its first bytes. */

interface Signature {
  readonly format: string;
  readonly bytes: Buffer;
}

const text = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

/** Formats that start with something of their own; the first that fits counts. */
const SIGNATURES: readonly Signature[] = [
  { format: 'qcow2', bytes: text('QFI\xfb\0\0\0\x02') },
  { format: 'qcow2', bytes: text('QFI\xfb\0\0\0\x03') },
  { format: 'qcow', bytes: text('QFI\xfb\0\0\0\x01') },
  { format: 'luks', bytes: text('LUKS\xba\xbe\0\x01') },
  { format: 'qed', bytes: text('QED\0') },
  { format: 'vmdk', bytes: text('KDMV') },
  { format: 'vmdk', bytes: text('COWD') },
  { format: 'vhdx', bytes: text('vhdxfile') },
  { format: 'vpc', bytes: text('conectix') },
  { format: 'parallels', bytes: text('WithoutFreeSpace') },
  { format: 'parallels', bytes: text('WithouFreSpacExt') },
];
const VDI = { offset: 64, bytes: Buffer.from([0x7f, 0x10, 0xda, 0xbe]) };

/** Bytes from the start of an image that `probeFormat` wants to see. */
export const PROBE_LENGTH = 512;

/** @param head the first bytes of the image, PROBE_LENGTH of them where it has as many */
export function probeFormat(head: Buffer): string {
  for (const { format, bytes } of SIGNATURES) {
    if (head.subarray(0, bytes.byteLength).equals(bytes)) return format;
  }
  const { offset, bytes } = VDI;
  if (head.subarray(offset, offset + bytes.byteLength).equals(bytes)) return 'vdi';
  return 'raw';
}
