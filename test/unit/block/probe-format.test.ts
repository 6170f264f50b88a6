// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { PROBE_LENGTH, probeFormat } from '../../../src/block/probe-format.js';

function head(text: string, at = 0): Buffer {
  const bytes = Buffer.alloc(PROBE_LENGTH);
  bytes.write(text, at, 'latin1');
  return bytes;
}

describe('the format of an image', () => {
  it.each([
    ['QFI\xfb\0\0\0\x01', 'qcow'],
    ['QFI\xfb\0\0\0\x02', 'qcow2'],
    ['QFI\xfb\0\0\0\x03', 'qcow2'],
    ['QFI\xfb\0\0\0\x09', 'qcow2'],
    ['QFI\xfb\xff\xff\xff\xff', 'qcow2'],
    ['QFI\xfb\0\0\0\0', 'raw'],
    ['LUKS\xba\xbe\0\x01', 'luks'],
    ['LUKS\xba\xbe\0\x02', 'raw'],
    ['QED\0', 'qed'],
    ['KDMV', 'vmdk'],
    ['COWD', 'vmdk'],
    ['# Disk DescriptorFile\nversion=1\n', 'vmdk'],
    ['#\n  \r\nversion=3\r\n', 'vmdk'],
    ['# Disk DescriptorFile\nversion=4\n', 'raw'],
    ['# no image\n', 'raw'],
    ['vhdxfile', 'vhdx'],
    ['conectix', 'vpc'],
    ['WithoutFreeSpace', 'parallels'],
    ['Bochs Virtual HD Image\0', 'bochs'],
    ['#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 ', 'cloop'],
    ['', 'raw'],
  ])('is told by the first bytes: %j is %s', (text, format) => {
    expect(probeFormat(head(text), '')).toBe(format);
  });

  it('is told by what stands further behind, or by the name', () => {
    expect(probeFormat(head('\x7f\x10\xda\xbe', 64), '')).toBe('vdi');
    expect(probeFormat(head(''), '/images/x.dmg')).toBe('dmg');
    expect(probeFormat(head(''), '.dmg')).toBe('raw');
  });
});
