// SPDX-License-Identifier: MIT
import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { allocatedBytes, KIB, MIB, patternBytes, readRange } from '../support/images.js';
import { nbdsh } from '../support/nbdsh.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 8 * MIB;

test('every command works, with and without FUA', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const shown = await nbdsh(
    disk.uri,
    `
h.connect_uri(uri)
for flags, at in ((0, 0), (nbd.CMD_FLAG_FUA, 1 << 20)):
    h.pwrite(b'\\xa1' * 65536, at, flags)
    show(h.pread(65536, at) == b'\\xa1' * 65536)
    h.zero(4096, at, flags)
    show(h.pread(8192, at) == bytes(4096) + b'\\xa1' * 4096)
    h.zero(4096, at + 8192, flags | nbd.CMD_FLAG_NO_HOLE)
    show(h.pread(4096, at + 8192) == bytes(4096))
    h.trim(16384, at + 32768, flags)
    show(h.pread(4096, at + 49152) == b'\\xa1' * 4096)
    h.cache(65536, at)
h.flush()
h.shutdown()
`,
  );
  expect(shown).toEqual(Array(8).fill(true));
  const bytes = await readRange(disk.path, MIB, 64 * KIB);
  expect(bytes.subarray(0, 4096).equals(Buffer.alloc(4096))).toBe(true);
  expect(bytes.subarray(4096, 8192).equals(Buffer.alloc(4096, 0xa1))).toBe(true);
});

test('zeroes with NO_HOLE keep their storage', async () => {
  const disk = await serveImage(testScope(), {
    size: SIZE,
    data: [{ offset: 0, length: 4 * MIB }],
  });
  await nbdsh(
    disk.uri,
    `
h.connect_uri(uri)
h.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
h.zero(1 << 20, 6 << 20, nbd.CMD_FLAG_NO_HOLE)
h.flush()
`,
  );
  expect((await readRange(disk.path, 0, MIB)).equals(Buffer.alloc(MIB))).toBe(true);
  expect(await allocatedBytes(disk.path)).toBeGreaterThanOrEqual(5 * MIB);
});

test('a fast zero either zeroes or fails with ENOTSUP, changing nothing', async () => {
  const disk = await serveImage(testScope(), { size: SIZE, data: [{ offset: 0, length: MIB }] });
  const [refusal, allZero, unchanged] = await nbdsh(
    disk.uri,
    `
h.connect_uri(uri)
before = h.pread(65536, 0)
refusal = failure(lambda: h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO))
after = h.pread(65536, 0)
show(refusal); show(after == bytes(65536)); show(after == before)
`,
  );
  if (refusal === null) expect(allZero).toBe(true);
  else expect([refusal, unchanged]).toEqual(['ENOTSUP', true]);
});

for (const structured of [true, false]) {
  test(`reads are right with ${structured ? 'structured' : 'simple'} replies`, async () => {
    const data = [{ offset: 64 * KIB, length: 100_000 }];
    const disk = await serveImage(testScope(), { size: SIZE, data, readOnly: true });
    const [negotiated, digest] = await nbdsh(
      disk.uri,
      `
import hashlib
h.set_request_structured_replies(${structured ? 'True' : 'False'})
h.connect_uri(uri)
show(h.get_structured_replies_negotiated())
ranges = ((0, 262144), (65537, 99999), (8388607, 1))
show([hashlib.sha256(h.pread(n, at)).hexdigest() for at, n in ranges])
`,
    );
    expect(negotiated).toBe(structured);
    const image = await readRange(disk.path, 0, SIZE);
    const sum = (at: number, length: number) =>
      createHash('sha256')
        .update(image.subarray(at, at + length))
        .digest('hex');
    expect(digest).toEqual([sum(0, 262144), sum(65537, 99999), sum(8388607, 1)]);
  });
}

test('a structured read tells holes from data, and DF asks for one chunk', async () => {
  const data = [{ offset: 64 * KIB, length: 64 * KIB }];
  const disk = await serveImage(testScope(), { size: SIZE, data, readOnly: true });
  const [free, single] = (await nbdsh(
    disk.uri,
    `
h.connect_uri(uri)
image = open(${JSON.stringify(disk.path)}, 'rb').read(262144)
for flags in (0, nbd.CMD_FLAG_DF):
    chunks = []
    def chunk(buf, offset, status, error):
        same = bytes(buf) == image[offset:offset + len(buf)]
        chunks.append([offset, len(buf), status, same])
    whole = h.pread_structured(262144, 0, chunk, flags)
    assert bytes(whole) == image
    show(sorted(chunks))
`,
  )) as [[number, number, number, boolean][], [number, number, number, boolean][]];
  expect(free.reduce((sum, [, length]) => sum + length, 0)).toBe(256 * KIB);
  const READ_DATA = 1;
  const covering = free.filter(([at]) => at === 64 * KIB);
  expect(covering.every(([, , status, same]) => status === READ_DATA && same)).toBe(true);
  expect(single).toEqual([[0, 256 * KIB, READ_DATA, true]]);
});

test('requests of one connection overlap, and each gets its own data', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const [equal] = await nbdsh(
    disk.uri,
    `
import os
h.connect_uri(uri)
parts = [os.urandom(32768) for _ in range(256)]
filled = [nbd.Buffer.from_bytearray(bytearray(p)) for p in parts]
cookies = [h.aio_pwrite(b, i * 32768) for i, b in enumerate(filled)]
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
buffers = [nbd.Buffer(32768) for _ in parts]
cookies = [h.aio_pread(b, i * 32768) for i, b in enumerate(buffers)]
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
show(all(b.to_bytearray() == p for b, p in zip(buffers, parts)))
`,
  );
  expect(equal).toBe(true);
});

test('what one connection wrote and flushed another one reads', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const [shown] = await nbdsh(
    disk.uri,
    `
other = nbd.NBD()
h.connect_uri(uri); other.connect_uri(uri)
h.pwrite(b'first' * 100, 777)
other.flush()
show(other.pread(500, 777) == b'first' * 100)
`,
  );
  expect(shown).toBe(true);
});

test('the largest request of 32 MiB is written and read', async () => {
  const size = 40 * MIB;
  const disk = await serveImage(testScope(), { size });
  const [same] = await nbdsh(
    disk.uri,
    `
import os
h.connect_uri(uri)
data = os.urandom(32 << 20)
h.pwrite(data, 1 << 20)
show(h.pread(32 << 20, 1 << 20) == data)
`,
  );
  expect(same).toBe(true);
});

test('bytes written by the host before the start are what a client reads', async () => {
  const disk = await serveImage(testScope(), {
    size: MIB,
    data: [{ offset: 0, length: 4096 }],
    seed: 5,
  });
  const [hex] = await nbdsh(disk.uri, 'h.connect_uri(uri); show(h.pread(4096, 0).hex())');
  expect(hex).toBe(patternBytes(4096, 5000).toString('hex'));
});
