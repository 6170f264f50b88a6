// SPDX-License-Identifier: MIT
/** `diskferry img check` and `qemu-img check` on the same images, sound and damaged. */
import { copyFile, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { tryPeer } from '../support/peers.js';
import { SeededRandom } from '../support/seeded-random.js';
import { Scope } from '../support/temp.js';

async function qemu(tool: 'qemu-img' | 'qemu-io', ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await tryPeer(tool, args);
  expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: '' });
  return stdout;
}

const io = (path: string, ...commands: string[]) =>
  qemu('qemu-io', ...commands.flatMap((command) => ['-c', command]), path);

const checkWith = {
  qemu: (...args: string[]) => tryPeer('qemu-img', ['check', ...args]),
  ours: (...args: string[]) => diskferry(['img', 'check', ...args]),
};

const WRITES = ['write -P 1 0 1M', 'write -P 2 5000k 300k', 'write -z 512k 64k'];

/** A snapshot or a bitmap, never both: qemu-img 7.2 forgets the snapshots of such an image when it repairs. */
const IMAGES: readonly {
  readonly options: string;
  readonly compressed?: true;
  readonly also?: 'snapshot' | 'bitmap';
}[] = [
  { options: 'cluster_size=64k', compressed: true, also: 'snapshot' },
  { options: 'cluster_size=512,refcount_bits=64', compressed: true, also: 'snapshot' },
  { options: 'compat=0.10', also: 'snapshot' },
  { options: 'lazy_refcounts=on', compressed: true, also: 'bitmap' },
  { options: 'extended_l2=on,cluster_size=16k', compressed: true, also: 'snapshot' },
  { options: 'refcount_bits=1,cluster_size=4k', also: 'bitmap' },
  { options: 'refcount_bits=4,cluster_size=1k', also: 'snapshot' },
  { options: 'cluster_size=2M,refcount_bits=8', compressed: true, also: 'bitmap' },
  { options: 'refcount_bits=32,cluster_size=2k,compression_type=zstd', compressed: true },
  { options: 'refcount_bits=2,preallocation=metadata' },
  { options: 'data_file=DATA,cluster_size=4k' },
];

const scope = new Scope();
let dir = '';

const base = (index: number): string => join(dir, `base${index}.qcow2`);

async function makeBase(index: number): Promise<void> {
  const { options, compressed, also } = IMAGES[index] ?? { options: '' };
  const path = base(index);
  const given = options.replace('DATA', join(dir, `data${index}`));
  await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', given, path, '16M');
  await io(path, ...WRITES, compressed === true ? 'write -c -P 3 8M 2M' : 'write -P 3 8M 64k');
  if (also === 'snapshot') {
    await qemu('qemu-img', 'snapshot', '-c', 's1', path);
    await io(path, 'write -P 4 256k 1M', 'discard 5000k 128k');
  } else if (also === 'bitmap') {
    await qemu('qemu-img', 'bitmap', '--add', '-g', '64k', path, 'b0');
    await io(path, 'write -P 5 3M 700k');
  }
}

beforeAll(async () => {
  dir = await scope.tempDir();
  for (const index of IMAGES.keys()) await makeBase(index);
});
afterAll(() => scope.close());

/** Where the structures of an image lie: [offset, length] in bytes. */
function structures(bytes: Buffer): Record<string, [number, number][]> {
  const at64 = (at: number): number => Number(bytes.readBigUInt64BE(at) & 0xff_ffff_ffff_fe00n);
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const l1: [number, number] = [at64(40), bytes.readUInt32BE(36) * 8];
  const table: [number, number] = [at64(48), 64];
  const pointed = ([offset, length]: [number, number], size: number): [number, number][] =>
    Array.from({ length: length / 8 }, (_, index) => at64(offset + index * 8))
      .filter((target) => target !== 0)
      .map((target) => [target, size]);
  return {
    l1: [l1],
    l2: pointed(l1, clusterSize),
    refcountTable: [table],
    refcountBlocks: pointed(table, Math.min(clusterSize, 512)),
  };
}

/** Flips bits, clears, copies or overwrites entries of one kind of structure. */
function damage(bytes: Buffer, random: SeededRandom): void {
  const found = Object.values(structures(bytes));
  const places = found[random.int(found.length)] ?? [];
  for (let times = [1, 1, 2, 5][random.int(4)] ?? 1; times > 0; times--) {
    const [offset, length] = places[random.int(places.length)] ?? [0, 8];
    const entries = Array.from({ length: length / 8 }, (_, index) => offset + index * 8).filter(
      (entry) => bytes.readBigUInt64BE(entry) !== 0n,
    );
    const entry = entries[random.int(entries.length)] ?? offset;
    const kind = random.int(10);
    if (kind < 6) {
      const bit = BigInt(random.int(64));
      bytes.writeBigUInt64BE(bytes.readBigUInt64BE(entry) ^ (1n << bit), entry);
    } else if (kind < 8) bytes.writeBigUInt64BE(0n, entry);
    else bytes.copy(bytes, entry, entries[random.int(entries.length)] ?? offset, entry + 8);
  }
}

const json = (text: string): unknown => {
  if (text === '') return undefined;
  const { filename: _, ...rest } = JSON.parse(text) as Record<string, unknown>;
  return rest;
};

describe('diskferry img check', () => {
  it.each(IMAGES.map(({ options }, index) => [options, index] as const))(
    'says of a sound image what qemu-img says: %s',
    async (_options, index) => {
      for (const args of [[base(index)], ['--output=json', base(index)], ['-q', base(index)]]) {
        const [theirs, ours] = [await checkWith.qemu(...args), await checkWith.ours(...args)];
        expect({ code: ours.code, stderr: ours.stderr }).toEqual({ code: 0, stderr: '' });
        expect(theirs.code).toBe(0);
        if (args[0] === '--output=json') expect(json(ours.stdout)).toEqual(json(theirs.stdout));
        else expect(ours.stdout).toBe(theirs.stdout);
      }
    },
  );

  it.each(Array.from({ length: 8 }, (_, seed) => seed))(
    'finds the damage that qemu-img finds, and mends what it mends: seed %i',
    async (seed) => {
      const random = new SeededRandom(seed + 7);
      const bytes = await readFile(base(random.int(IMAGES.length)));
      damage(bytes, random);
      const [a, b] = [join(dir, `${seed}a`), join(dir, `${seed}b`)];
      await writeFile(a, bytes);
      const theirs = await checkWith.qemu('--output=json', a);
      const ours = await checkWith.ours('--output=json', a);
      expect(ours.code).toBe(theirs.code);
      expect(json(ours.stdout)).toEqual(json(theirs.stdout));
      expect((await readFile(a)).equals(bytes)).toBe(true);
      for (const fix of ['leaks', 'all']) {
        await writeFile(a, bytes);
        await writeFile(b, bytes);
        const mendedTheirs = await checkWith.qemu('-r', fix, a);
        const mendedOurs = await checkWith.ours('-r', fix, b);
        // There are images that only we can mend, and none that only qemu-img can.
        if (mendedTheirs.code !== 1) expect(mendedOurs.code).toBe(mendedTheirs.code);
        if (mendedOurs.code !== 1) {
          expect((await checkWith.qemu('-q', b)).code).toBe(mendedOurs.code);
        }
        if (mendedTheirs.code !== 1) {
          expect((await checkWith.ours('-q', a)).code).toBe(mendedTheirs.code);
        }
      }
    },
  );

  it('mends an image whose counts have all been lost, and keeps what is in it', async () => {
    const path = join(dir, 'lost.qcow2');
    const raw = join(dir, 'lost.raw');
    await qemu('qemu-img', 'convert', '-O', 'raw', base(0), raw);
    const bytes = await readFile(base(0));
    const table = Number(bytes.readBigUInt64BE(48));
    bytes.fill(0, table, table + 65536);
    await writeFile(path, bytes);
    expect((await checkWith.ours(path)).code).toBe(2);
    const leaks = await checkWith.ours('-r', 'leaks', path);
    expect({ code: leaks.code, changed: !(await readFile(path)).equals(bytes) }).toEqual({
      code: 1,
      changed: false,
    });
    const all = await checkWith.ours('-r', 'all', path);
    expect(all.stdout).toContain('The following inconsistencies were found and repaired:');
    expect(all.code).toBe(0);
    await qemu('qemu-img', 'check', path);
    await qemu('qemu-img', 'compare', path, raw);
    await io(path, 'write -P 9 12M 3M', 'read -P 9 12M 3M');
    await qemu('qemu-img', 'check', path);
  });

  it('takes away the marks of a crash and of corruption when nothing is wrong any more', async () => {
    const path = join(dir, 'marked.qcow2');
    const bytes = await readFile(base(0));
    bytes.writeBigUInt64BE(bytes.readBigUInt64BE(72) | 3n, 72);
    await writeFile(path, bytes);
    expect((await checkWith.ours(path)).code).toBe(0);
    expect((await readFile(path)).equals(bytes)).toBe(true);
    expect((await checkWith.ours('-r', 'all', path)).code).toBe(0);
    expect((await readFile(path)).readBigUInt64BE(72) & 3n).toBe(0n);
    await io(path, 'write 0 64k');
  });

  it('is what the first change of an image after a crash does, lost counts included', async () => {
    const path = join(dir, 'crashed.qcow2');
    const raw = join(dir, 'crashed.raw');
    await qemu('qemu-img', 'convert', '-O', 'raw', base(3), raw);
    for (const lost of ['table', 'block']) {
      const bytes = await readFile(base(3));
      bytes.writeBigUInt64BE(bytes.readBigUInt64BE(72) | 1n, 72);
      const table = Number(bytes.readBigUInt64BE(48));
      const block = Number(bytes.readBigUInt64BE(table));
      if (lost === 'table') bytes.fill(0, table, table + 8);
      else bytes.writeUInt16BE(5, block + 8);
      await writeFile(path, bytes);
      expect((await diskferry(['img', 'bitmap', '--add', path, 'b1'])).code).toBe(0);
      expect((await readFile(path)).readBigUInt64BE(72) & 1n).toBe(0n);
      await qemu('qemu-img', 'check', path);
      await qemu('qemu-img', 'compare', path, raw);
    }
  });

  it('gives the room of leaked clusters back', async () => {
    const path = join(dir, 'leaked.qcow2');
    await copyFile(base(9), path);
    const bytes = await readFile(path);
    const l1 = Number(bytes.readBigUInt64BE(40));
    bytes.fill(0, l1, l1 + 8);
    await writeFile(path, bytes);
    const before = await stat(path);
    expect((await checkWith.ours(path)).code).toBe(3);
    expect((await checkWith.ours('-r', 'leaks', path)).code).toBe(0);
    expect((await stat(path)).blocks).toBeLessThan(before.blocks);
    await qemu('qemu-img', 'check', path);
  });

  it('checks 64 TiB with a few clusters in little time and memory', async () => {
    const path = join(dir, 'huge.qcow2');
    await qemu('qemu-img', 'create', '-q', '-f', 'qcow2', path, '64T');
    await io(path, 'write 0 64k', 'write 40T 1M', 'write 65535G 64k');
    // A file as long as the disk, of which nearly nothing is there.
    await truncate(path, 2 ** 43);
    const limited = await tryPeer('sh', [
      '-c',
      `ulimit -t 20; exec "$0" "$@"`,
      process.execPath,
      ...['--max-old-space-size=64', 'dist/src/cli/launch.cjs', 'img', 'check', path],
    ]);
    expect({ code: limited.code, stderr: limited.stderr }).toEqual({ code: 0, stderr: '' });
    expect(limited.stdout).toContain('18/1073741824 = 0.00% allocated');
  });

  it('says which formats it can not check, what is no image, and what is in use', async () => {
    const raw = join(dir, 'some.raw');
    await writeFile(raw, Buffer.alloc(65536));
    const cases: readonly (readonly [args: string[], code: number, text: string])[] = [
      [[raw], 63, 'This image format does not support checks'],
      [['-f', 'raw', base(0)], 63, 'This image format does not support checks'],
      [['-f', 'qcow2', raw], 1, 'Image is not in qcow2 format'],
      [[join(dir, 'absent')], 1, 'No such file or directory'],
      [
        ['-r', 'some', base(0)],
        1,
        "Unknown option value for -r (expecting 'leaks' or 'all'): some",
      ],
      [['--output=xml', base(0)], 1, '--output must be used with human or json as argument.'],
    ];
    for (const [args, code, text] of cases) {
      const ours = await checkWith.ours(...args);
      expect({ args, code: ours.code, stdout: ours.stdout }).toEqual({ args, code, stdout: '' });
      expect(ours.stderr).toContain(text);
      expect((await checkWith.qemu(...args)).code).toBe(code);
    }
    const options = `driver=qcow2,file.filename=${base(0)},file.driver=file`;
    expect((await checkWith.ours('--image-opts', options)).code).toBe(0);
  });
});
