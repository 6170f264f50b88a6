// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { KIB, MIB } from '../support/images.js';
import { nbdsh } from '../support/nbdsh.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 8 * MIB;
const DATA = [
  { offset: 0, length: 64 * KIB },
  { offset: 2 * MIB, length: 128 * KIB },
];

/** Collects the extents of the whole disk, as [context, [length, flags, ...]] for each call. */
const STATUS = `
def status(count, offset, flags=0):
    seen = {}
    def extent(context, at, entries, error):
        assert at == offset
        seen[context] = entries
    h.block_status(count, offset, extent, flags)
    return seen
`;

test('base:allocation describes data and holes, and merges what is alike', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const [can, whole] = await nbdsh(
    disk.uri,
    `${STATUS}
h.add_meta_context('base:allocation')
h.connect_uri(uri)
show(h.can_meta_context('base:allocation'))
show(status(h.get_size(), 0))
`,
  );
  expect(can).toBe(true);
  expect(whole).toEqual({
    'base:allocation': [
      ...[64 * KIB, 0],
      ...[2 * MIB - 64 * KIB, 3],
      ...[128 * KIB, 0],
      ...[SIZE - 2 * MIB - 128 * KIB, 3],
    ],
  });
});

test('REQ_ONE gives a single extent that starts at the offset', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: DATA, readOnly: true });
  const [inHole, inData] = await nbdsh(
    disk.uri,
    `${STATUS}
h.add_meta_context('base:allocation')
h.connect_uri(uri)
show(status(${MIB}, ${MIB}, nbd.CMD_FLAG_REQ_ONE))
show(status(${MIB}, ${2 * MIB + 4 * KIB}, nbd.CMD_FLAG_REQ_ONE))
`,
  );
  expect(inHole).toEqual({ 'base:allocation': [MIB, 3] });
  expect(inData).toEqual({ 'base:allocation': [124 * KIB, 0] });
});

test('several contexts are answered together', async () => {
  const disk = await serveImage(testScope(), {
    size: SIZE,
    data: DATA,
    readOnly: true,
    exportOptions: ',allocation-depth=on',
  });
  const [seen] = await nbdsh(
    disk.uri,
    `${STATUS}
h.add_meta_context('base:allocation')
h.add_meta_context('qemu:allocation-depth')
h.add_meta_context('x-unknown:context')
h.connect_uri(uri)
assert not h.can_meta_context('x-unknown:context')
show(sorted(status(65536, 0).keys()))
`,
  );
  expect(seen).toEqual(['base:allocation', 'qemu:allocation-depth']);
});

test('the contexts of an export can be listed, by name and by namespace', async () => {
  const disk = await serveImage(testScope(), {
    size: SIZE,
    readOnly: true,
    exportOptions: ',allocation-depth=on',
  });
  const [all, base, qemu] = await nbdsh(
    disk.uri,
    `
h.set_opt_mode(True)
h.connect_uri(uri)
def listed(*queries):
    names = []
    h.clear_meta_contexts()
    for query in queries: h.add_meta_context(query)
    h.opt_list_meta_context(lambda name: names.append(name) and 0)
    return sorted(names)
show(listed()); show(listed('base:')); show(listed('qemu:'))
h.opt_abort()
`,
  );
  expect(all).toEqual(['base:allocation', 'qemu:allocation-depth']);
  expect(base).toEqual(['base:allocation']);
  expect(qemu).toEqual(['qemu:allocation-depth']);
});

test('writes, zeroes and trims show up in the status', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const [written, trimmed] = await nbdsh(
    disk.uri,
    `${STATUS}
h.add_meta_context('base:allocation')
h.connect_uri(uri)
h.pwrite(b'x' * 1048576, 4 << 20)
h.flush()
show(status(h.get_size(), 0))
h.trim(524288, 4 << 20)
h.flush()
show(status(h.get_size(), 0))
`,
  );
  expect(written).toEqual({ 'base:allocation': [4 * MIB, 3, MIB, 0, 3 * MIB, 3] });
  const half = MIB / 2;
  expect(trimmed).toEqual({ 'base:allocation': [4 * MIB + half, 3, half, 0, 3 * MIB, 3] });
});
