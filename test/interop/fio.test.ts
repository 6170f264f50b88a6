// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { MIB } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

interface FioReport {
  readonly jobs: readonly {
    readonly error: number;
    readonly read: { readonly io_bytes: number };
    readonly write: { readonly io_bytes: number };
  }[];
}

const SIZE_MIB = 32;

/** fio writes checksummed blocks over its nbd engine and reads each of them again. */
async function fioVerify(uri: string, options: Readonly<Record<string, string | number>>) {
  const settings = {
    name: 'verify',
    ioengine: 'nbd',
    uri,
    size: `${SIZE_MIB}m`,
    verify: 'crc32c',
    verify_fatal: 1,
    do_verify: 1,
    verify_state_save: 0,
    randseed: 42,
    ...options,
  };
  const args = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
  const { stdout } = await runPeer('fio', ['--output-format=json', ...args]);
  return (JSON.parse(stdout.slice(stdout.indexOf('{'))) as FioReport).jobs;
}

for (const tcp of [false, true]) {
  test(`random writes of mixed sizes verify over ${tcp ? 'TCP' : 'a UNIX socket'}`, async () => {
    const disk = await serveImage(testScope(), { size: SIZE_MIB * MIB, tcp });
    const [job] = await fioVerify(disk.uri, { rw: 'randwrite', bsrange: '4k-256k', iodepth: 32 });
    expect(job).toMatchObject({ error: 0 });
    expect(job?.write.io_bytes).toBe(SIZE_MIB * MIB);
    expect(job?.read.io_bytes).toBe(SIZE_MIB * MIB);
  });
}

test('sequential writes of 1 MiB verify', async () => {
  const disk = await serveImage(testScope(), { size: SIZE_MIB * MIB });
  const [job] = await fioVerify(disk.uri, { rw: 'write', bs: '1m', iodepth: 16 });
  expect(job).toMatchObject({ error: 0 });
});

test('blocks of 512 bytes verify', async () => {
  const disk = await serveImage(testScope(), { size: 2 * MIB });
  const [job] = await fioVerify(disk.uri, { rw: 'randwrite', bs: 512, size: '2m', iodepth: 64 });
  expect(job).toMatchObject({ error: 0 });
});

test('four connections that write parts of their own verify, with flushes between', async () => {
  const disk = await serveImage(testScope(), { size: SIZE_MIB * MIB });
  const jobs = await fioVerify(disk.uri, {
    rw: 'randwrite',
    bs: '16k',
    iodepth: 8,
    numjobs: 4,
    size: '8m',
    offset_increment: '8m',
    fsync: 16,
  });
  expect(jobs).toHaveLength(4);
  for (const job of jobs) expect(job).toMatchObject({ error: 0 });
});

test('reads and writes mixed verify while both are in flight', async () => {
  const disk = await serveImage(testScope(), { size: SIZE_MIB * MIB });
  const [job] = await fioVerify(disk.uri, {
    rw: 'randrw',
    rwmixread: 50,
    bs: '4k',
    iodepth: 32,
    size: '8m',
    verify_backlog: 64,
  });
  expect(job).toMatchObject({ error: 0 });
});
