// SPDX-License-Identifier: MIT
/** Which format an image has, by its first bytes: the rules of QEMU's probes. */

interface Signature {
  readonly format: string;
  readonly bytes: Buffer;
  /** Where they stand in the image, bytes. */
  readonly at?: number;
}

const text = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

/** Formats that start with something of their own; the first that fits counts. */
const SIGNATURES: readonly Signature[] = [
  { format: 'luks', bytes: text('LUKS\xba\xbe\0\x01') },
  { format: 'qed', bytes: text('QED\0') },
  { format: 'vmdk', bytes: text('KDMV') },
  { format: 'vmdk', bytes: text('COWD') },
  { format: 'vhdx', bytes: text('vhdxfile') },
  { format: 'vpc', bytes: text('conectix') },
  { format: 'parallels', bytes: text('WithoutFreeSpace') },
  { format: 'parallels', bytes: text('WithouFreSpacExt') },
  { format: 'vdi', bytes: Buffer.from([0x7f, 0x10, 0xda, 0xbe]), at: 64 },
  { format: 'bochs', bytes: text('Bochs Virtual HD Image\0') },
  { format: 'cloop', bytes: text('#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r ') },
];

const QCOW_MAGIC = text('QFI\xfb');
/** Comments and blank lines, then the version: a VMDK image's description of its parts. */
const VMDK_DESCRIPTION = /^(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n/;

/** Bytes from the start of an image that `probeFormat` wants to see. */
export const PROBE_LENGTH = 512;

/**
 * A format that is found need not be one that we have: taking such an image for raw data would show
 * its metadata as the disk.
 *
 * @param head the first PROBE_LENGTH bytes of the image, zeroes for what lies past its end
 * @param filename '' where there is none
 */
export function probeFormat(head: Buffer, filename: string): string {
  const starts = (bytes: Buffer, at = 0): boolean =>
    head.subarray(at, at + bytes.byteLength).equals(bytes);
  if (starts(QCOW_MAGIC)) {
    // A version that nobody knows yet is qcow2 as well: opening it says so.
    const version = head.readUInt32BE(QCOW_MAGIC.byteLength);
    if (version >= 2) return 'qcow2';
    if (version === 1) return 'qcow';
  }
  for (const { format, bytes, at } of SIGNATURES) if (starts(bytes, at)) return format;
  if (VMDK_DESCRIPTION.test(head.toString('latin1'))) return 'vmdk';
  return /.\.dmg$/.test(filename) ? 'dmg' : 'raw';
}
