// SPDX-License-Identifier: MIT
/** Images that were not closed, that contradict themselves, or that others have to find as they left them. */
import { copyFile, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import {
  contentOf,
  createImage,
  expectEqual,
  expectSound,
  KIB,
  MIB,
  openImage,
  qemuContent,
  qemuIo,
} from '../support/qcow2.js';
import { testScope } from '../support/temp.js';
import { READER, RESIZER } from '../unit/block/driver/test-graph.js';

async function image(
  size: number,
  options = '',
): Promise<{ readonly dir: string; readonly path: string }> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await createImage(path, size, options);
  return { dir, path };
}

async function patch(path: string, offset: number, bytes: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(bytes, 0, bytes.byteLength, offset);
  await file.close();
}

/** 64 bits, as the format has them. */
function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

const headerOf = async (path: string): Promise<Buffer> => (await readFile(path)).subarray(0, 112);
const DIRTY = 1n;
const CORRUPT = 2n;

describe('internal snapshots', () => {
  it('keep what they hold when the image is written', async () => {
    const { dir, path } = await image(2 * MIB, 'cluster_size=4k');
    await qemuIo(path, ['write -P 1 0 2M']);
    await runPeer('qemu-img', ['snapshot', '-c', 'before', path]);
    const { node, close } = await openImage(path);
    await node.write(100, Buffer.alloc(50_000, 2));
    await node.writeZeroes(1 * MIB, 64 * KIB, 2);
    await node.discard(1 * MIB + 128 * KIB, 64 * KIB);
    await node.write(2 * MIB - 1, Buffer.alloc(1, 3));
    const content = await contentOf(node);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, join(dir, 'raw')), content);
    await runPeer('qemu-img', ['snapshot', '-a', 'before', path]);
    expectEqual(await qemuContent(path, join(dir, 'raw')), Buffer.alloc(2 * MIB, 1));
    await runPeer('qemu-img', ['snapshot', '-d', 'before', path]);
    await expectSound(path);
  });

  it('keep their clusters with extended L2 entries', async () => {
    const { dir, path } = await image(2 * MIB, 'extended_l2=on,cluster_size=16k');
    await qemuIo(path, ['write -P 1 0 1M', 'write -P 2 1M 3k']);
    await runPeer('qemu-img', ['snapshot', '-c', 'before', path]);
    const { node, close } = await openImage(path);
    await node.write(100, Buffer.alloc(50_000, 2));
    await node.write(1 * MIB + 1000, Buffer.alloc(10, 3));
    await node.writeZeroes(512 * KIB, 20 * KIB, 2);
    const content = await contentOf(node);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, join(dir, 'raw')), content);
    await runPeer('qemu-img', ['snapshot', '-a', 'before', path]);
    const before = Buffer.alloc(2 * MIB);
    before.fill(1, 0, 1 * MIB).fill(2, 1 * MIB, 1 * MIB + 3 * KIB);
    expectEqual(await qemuContent(path, join(dir, 'raw')), before);
  });
});

describe('compressed clusters', () => {
  it('are replaced by written ones, and come free', async () => {
    const { dir, path } = await image(4 * MIB);
    await qemuIo(path, ['write -P 0x41 0 4M']);
    const packed = join(dir, 'packed');
    await runPeer('qemu-img', ['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', path, packed]);
    const { node, close } = await openImage(packed);
    await node.write(70_000, Buffer.alloc(100_000, 5));
    await node.writeZeroes(1 * MIB, 128 * KIB, 2);
    await node.writeZeroes(2 * MIB + 10, 1000);
    await node.discard(3 * MIB, 64 * KIB);
    const content = await contentOf(node);
    await close();
    await expectSound(packed);
    expectEqual(await qemuContent(packed, join(dir, 'raw')), content);
  });
});

describe('an image whose writer was killed', () => {
  for (const lazy of ['on', 'off']) {
    it(`has all that was flushed, and no corruption: lazy refcounts ${lazy}`, async () => {
      const { dir, path } = await image(8 * MIB, `cluster_size=4k,lazy_refcounts=${lazy}`);
      const { node, close } = await openImage(path);
      await node.write(0, Buffer.alloc(1 * MIB, 1));
      await node.flush();
      const flushed = await contentOf(node);
      await node.write(2 * MIB, Buffer.alloc(1 * MIB, 2));
      // What a process leaves that dies now: nothing of what is in memory.
      const left = join(dir, 'left');
      await copyFile(path, left);
      await close();
      const { code, stdout } = await tryPeer('qemu-img', ['check', '-f', 'qcow2', left]);
      // With lazy refcounts the mark says that counts are to be worked out.
      if (lazy === 'off') expect([0, 3], stdout).toContain(code);
      else expect((await headerOf(left)).readBigUInt64BE(72) & DIRTY).toBe(DIRTY);
      const again = await openImage(left);
      expectEqual((await contentOf(again.node)).subarray(0, 1 * MIB), flushed.subarray(0, 1 * MIB));
      await again.node.write(5 * MIB, Buffer.alloc(64 * KIB, 3));
      await again.close();
      const after = await tryPeer('qemu-img', ['check', '-f', 'qcow2', left]);
      expect([0, 3], after.stdout).toContain(after.code);
      if (lazy === 'on') expect(after.code, after.stdout).toBe(0);
      expect((await headerOf(left)).readBigUInt64BE(72) & DIRTY).toBe(0n);
    });
  }

  it('by qemu-io with lazy refcounts is put right by the first write', async () => {
    const { dir, path } = await image(4 * MIB, 'cluster_size=4k,lazy_refcounts=on');
    await tryPeer('qemu-io', [
      ...['-f', 'qcow2', '-c', 'write -P 7 0 1M', '-c', 'flush', '-c', 'write -P 8 2M 100k'],
      ...['-c', 'sigraise 9', path],
    ]);
    expect((await headerOf(path)).readBigUInt64BE(72) & DIRTY).toBe(DIRTY);
    const { node, close } = await openImage(path);
    await node.write(3 * MIB, Buffer.alloc(10_000, 9));
    const content = await contentOf(node);
    await close();
    await expectSound(path);
    expectEqual(await qemuContent(path, join(dir, 'raw')), content);
    expectEqual(content.subarray(0, 1 * MIB), Buffer.alloc(1 * MIB, 7));
  });
});

describe('flushing', () => {
  it('while another flush is under way waits for what that one has taken along', async () => {
    const { dir, path } = await image(4 * MIB);
    const { node, close } = await openImage(path);
    await node.write(0, Buffer.alloc(1 * MIB, 1));
    const first = node.flush();
    // By then it waits for the disk, and has all that has changed in its hands.
    for (let turn = 0; turn < 50; turn++) await Promise.resolve();
    await node.driver.flush?.();
    const left = join(dir, 'left');
    await copyFile(path, left);
    await first;
    await close();
    expectEqual(
      (await qemuContent(left, join(dir, 'raw'))).subarray(0, 1 * MIB),
      Buffer.alloc(1 * MIB, 1),
    );
  });
});

describe('header fields are checked', () => {
  const refuses = (what: string, offset: number, bytes: Buffer, message: RegExp): void => {
    it(what, async () => {
      const { path } = await image(1 * MIB);
      await patch(path, offset, bytes);
      await expect(openImage(path)).rejects.toThrow(message);
    });
  };
  const u32 = (value: number): Buffer => u64(BigInt(value)).subarray(4);
  refuses('another magic', 0, u32(1), /^Image is not in qcow2 format$/);
  refuses('another version', 4, u32(4), /^Unsupported qcow2 version 4$/);
  refuses('clusters of 2^8 bytes', 20, u32(8), /^Unsupported cluster size: 2\^8$/);
  refuses('clusters of 2^63 bytes', 20, u32(63), /^Unsupported cluster size: 2\^63$/);
  refuses('a size of 2^63', 24, u64(1n << 63n), /^Image is too big$/);
  refuses('an L1 table that is too short', 24, u64(1n << 45n), /^L1 table is too small$/);
  refuses('a huge L1 table', 36, u32(0xffff_ffff), /^Active L1 table too large$/);
  refuses('a misplaced L1 table', 40, u64(12345n), /^Active L1 table offset invalid$/);
  refuses('an L1 table at 2^63', 40, u64(1n << 63n), /^Active L1 table offset invalid$/);
  refuses('no refcount table', 56, u32(0), /^Image does not contain a reference count table$/);
  refuses('a huge refcount table', 56, u32(1 << 30), /^Reference count table too large$/);
  refuses('a misplaced refcount table', 48, u64(1n), /^Reference count table offset invalid$/);
  refuses('too many snapshots', 60, u32(70000), /^Snapshot table too large$/);
  refuses('misplaced snapshots', 64, u64(3n), /^Snapshot table offset invalid$/);
  refuses('counts of 128 bits', 96, u32(7), /^Reference count entry width too large/);
  refuses('a short header', 100, u32(96), /^qcow2 header too short$/);
  refuses('a header past the cluster', 100, u32(1 << 20), /^qcow2 header exceeds cluster size$/);
  refuses('a backing name past the cluster', 8, u64(1n << 40n), /^Invalid backing file offset$/);
  refuses(
    'an encrypted image',
    32,
    u32(2),
    /^Parameter 'encrypt.key-secret' is required for cipher$/,
  );
  refuses('a compression that there is not', 104, Buffer.from([9]), /unknown compression type: 9/);
  refuses('an unknown feature', 72, u64(1n << 40n), /^Unsupported qcow2 feature\(s\): Unknown/);
  refuses(
    'a raw data file without a data file',
    88,
    u64(2n),
    /^data-file-raw requires a data file$/,
  );
  refuses('an extension past the cluster', 116, u32(0x7fff_ffff), /^Header extension too large$/);

  it('tells an unknown feature by its name', async () => {
    const { path } = await image(1 * MIB);
    const content = await readFile(path);
    const name = content.indexOf('extended L2 entries');
    await patch(path, name - 1, Buffer.from([41, ...Buffer.from('time travel\0')]));
    await patch(path, 72, u64(1n << 41n));
    await expect(openImage(path)).rejects.toThrow('Unsupported qcow2 feature(s): time travel');
  });
});

describe('tables that lie', () => {
  /** An image with one cluster of data; where its L2 table is. */
  async function withData(): Promise<{ path: string; l1: number; l2: number; dir: string }> {
    const { dir, path } = await image(64 * MIB);
    await qemuIo(path, ['write -P 1 0 64k']);
    const content = await readFile(path);
    const l1 = Number(content.readBigUInt64BE(40));
    const l2 = Number(content.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
    return { path, l1, l2, dir };
  }

  it('make an image corrupt, and mark it so', async () => {
    const { path, l2 } = await withData();
    await patch(path, l2, u64((1n << 63n) | 0x50200n));
    const { node, graph, close } = await openImage(path);
    const events: unknown[] = [];
    graph.observer = { imageCorrupted: (_node, corruption) => events.push(corruption) };
    await expect((async () => node.read(0, Buffer.alloc(512)))()).rejects.toThrow(
      /^Cluster allocation offset 0x50200 unaligned/,
    );
    await expect((async () => node.write(1 * MIB, Buffer.alloc(512)))()).rejects.toThrow(
      /^Cluster allocation offset 0x50200 unaligned/,
    );
    await close();
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ fatal: true });
    expect((await headerOf(path)).readBigUInt64BE(72) & CORRUPT).toBe(CORRUPT);
    await expect(openImage(path)).rejects.toThrow(
      'qcow2: Image is corrupt; cannot be opened read/write',
    );
    const reader = await openImage(path, { 'read-only': true }, READER);
    await reader.node.read(1 * MIB, Buffer.alloc(512));
    await reader.close();
  });

  it('are no reason to mark an image that is only read', async () => {
    const { path, l1 } = await withData();
    await patch(path, l1, u64((1n << 63n) | 0x40200n));
    const { node, close } = await openImage(path, { 'read-only': true }, READER);
    await expect((async () => node.read(0, Buffer.alloc(512)))()).rejects.toThrow(
      /^L2 table offset 0x40200 unaligned \(L1 index: 0\)/,
    );
    await close();
    expect((await headerOf(path)).readBigUInt64BE(72)).toBe(0n);
  });

  for (const [what, victim] of [
    ['the header', 'qcow2_header'],
    ['the L1 table', 'active L1 table'],
    ['the L2 table', 'active L2 table'],
    ['the refcount table', 'refcount table'],
    ['a refcount block', 'refcount block'],
  ] as const) {
    it(`do not let a write destroy ${what}`, async () => {
      const { path, l1, l2 } = await withData();
      const content = await readFile(path);
      const table = Number(content.readBigUInt64BE(48));
      const block = Number(content.readBigUInt64BE(table));
      const places: Record<string, number> = {
        'the header': 0,
        'the L1 table': l1,
        'the L2 table': l2,
        'the refcount table': table,
        'a refcount block': block,
      };
      const place = places[what] ?? 0;
      // Offset 0 means that nothing is there; the header can only be met by allocating.
      if (place !== 0) await patch(path, l2, u64((1n << 63n) | BigInt(place)));
      else await patch(path, block, Buffer.alloc(2));
      const { node, close } = await openImage(path);
      const offset = place === 0 ? 1 * MIB : 0;
      await expect((async () => node.write(offset, Buffer.alloc(512, 0xff)))()).rejects.toThrow(
        `Preventing invalid write on metadata (overlaps with ${victim})`,
      );
      await close();
      const after = await readFile(path);
      expect(after.readBigUInt64BE(72) & CORRUPT).toBe(CORRUPT);
      expectEqual(
        Buffer.from(after.subarray(place + 112, place + 64 * KIB)),
        Buffer.from(content.subarray(place + 112, place + 64 * KIB).fill(0, 0, 0)),
      );
    });
  }

  it('do not let counts be written over the L1 table', async () => {
    const { path, l1 } = await withData();
    const table = Number((await readFile(path)).readBigUInt64BE(48));
    const before = (await readFile(path)).subarray(l1, l1 + 64 * KIB);
    await patch(path, table, u64(BigInt(l1)));
    const { node, close } = await openImage(path);
    await expect(
      (async () => {
        await node.write(32 * MIB, Buffer.alloc(64 * KIB, 1));
        await node.flush();
      })(),
    ).rejects.toThrow('Preventing invalid write on metadata (overlaps with');
    await close();
    const after = await readFile(path);
    expect(after.readBigUInt64BE(72) & CORRUPT).toBe(CORRUPT);
    expectEqual(Buffer.from(after.subarray(l1, l1 + 64 * KIB)), Buffer.from(before));
  });

  it('that point past the end of the file read as zeroes', async () => {
    const { path, l1 } = await withData();
    await patch(path, l1, u64((1n << 63n) | (1n << 50n)));
    const { node, close } = await openImage(path, { 'read-only': true }, READER);
    const bytes = Buffer.alloc(64 * KIB, 1);
    await node.read(0, bytes);
    await close();
    expectEqual(bytes, Buffer.alloc(64 * KIB));
  });

  it('compressed clusters full of rubbish fail to be read', async () => {
    const { path, l2 } = await withData();
    await patch(path, l2, u64((1n << 62n) | (1n << 60n) | 0x50000n));
    const { node, close } = await openImage(path, { 'read-only': true }, READER);
    await expect((async () => node.read(0, Buffer.alloc(512)))()).rejects.toThrow(
      /compressed cluster can not be decompressed/,
    );
    await close();
  });
});

describe('chains', () => {
  it('that loop are refused', async () => {
    const { path } = await image(1 * MIB);
    await runPeer('qemu-img', ['rebase', '-u', '-b', path, '-F', 'qcow2', path]);
    await expect(
      openImage(path, { 'read-only': true, 'force-share': true }, READER),
    ).rejects.toThrow(
      /^(Could not open backing file: ){2}Backing file '.*' creates an infinite loop\.$/,
    );
  });

  it('that name a file that is not there are refused, and tell which', async () => {
    const { path } = await image(1 * MIB);
    await runPeer('qemu-img', ['rebase', '-u', '-b', 'nowhere', '-F', 'qcow2', path]);
    await expect(openImage(path)).rejects.toThrow(/^Could not open backing file: .*nowhere/);
  });

  it('named by json: or without a format are opened', async () => {
    const { dir, path } = await image(1 * MIB);
    await qemuIo(path, ['write -P 5 0 1M']);
    const top = join(dir, 'top');
    for (const name of [
      `json:{"driver":"qcow2","file.driver":"file","file.filename":"${path}"}`,
      `json:{"driver":"qcow2","file":{"driver":"file","filename":"${path}"}}`,
    ]) {
      await createImage(top, 1 * MIB, '', ['-u', '-b', name, '-F', 'qcow2']);
      const { node, close } = await openImage(top);
      expectEqual(await contentOf(node), Buffer.alloc(1 * MIB, 5));
      await close();
    }
    await createImage(top, 1 * MIB, '', ['-b', path, '-F', 'qcow2']);
    // qemu-img makes no image without a format any more; an extension that nobody knows stands in.
    const format = (await readFile(top)).indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]));
    await patch(top, format, Buffer.from([0x12, 0x34, 0x56, 0x78]));
    const { node, close } = await openImage(top);
    expectEqual(await contentOf(node), Buffer.alloc(1 * MIB, 5));
    await close();
  });
});

describe('zeroes in the cluster where a shorter backing file ends', () => {
  it('leave what is before them', async () => {
    const { dir, path } = await image(1 * MIB + 512);
    await qemuIo(path, [`write -P 5 0 ${1 * MIB + 512}`]);
    const top = join(dir, 'top');
    await createImage(top, 2 * MIB, '', ['-b', path, '-F', 'qcow2']);
    const { node, close } = await openImage(top);
    await node.writeZeroes(1 * MIB + 512, 1);
    await close();
    await expectSound(top);
    const expected = Buffer.alloc(2 * MIB).fill(5, 0, 1 * MIB + 512);
    expectEqual(await qemuContent(top, join(dir, 'raw')), expected);
  });
});

describe('resizing', () => {
  it('does not let a longer backing file show', async () => {
    const { dir, path } = await image(4 * MIB);
    await qemuIo(path, ['write -P 5 0 4M']);
    const top = join(dir, 'top');
    await createImage(top, 1 * MIB, '', ['-b', path, '-F', 'qcow2']);
    const { node, close } = await openImage(top, {}, RESIZER);
    await node.truncate(5 * MIB);
    const expected = Buffer.alloc(5 * MIB);
    expected.fill(5, 0, 1 * MIB);
    expectEqual(await contentOf(node), expected);
    await close();
    await expectSound(top);
    expectEqual(await qemuContent(top, join(dir, 'raw')), expected);
  });
});

describe('writing zeroes to files', () => {
  it('gives space back where the node may', async () => {
    const { path } = await image(16 * MIB);
    const { node, close } = await openImage(path);
    await node.write(0, Buffer.alloc(16 * MIB, 1));
    await node.flush();
    await node.discard(0, 16 * MIB);
    await close();
    await expectSound(path);
    type Info = { 'actual-size': number };
    const info = await runPeerJson<Info>('qemu-img', ['info', '--output=json', path]);
    expect(info['actual-size']).toBeLessThan(1 * MIB);
  });
});
