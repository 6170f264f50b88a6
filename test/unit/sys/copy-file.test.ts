// SPDX-License-Identifier: MIT
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FILE_COPY_STEP } from '../../../src/base/limits.js';
import { type CopyCall, FileCopier } from '../../../src/sys/copy-file.js';
import { DiskFile } from '../../../src/sys/file.js';
import { native } from '../../../src/sys/linux.js';
import { MIB, patternBytes } from '../../support/images.js';
import { testScope } from '../../support/temp.js';

const KIB = 1024;

async function files(content: Buffer, direct = false) {
  const scope = testScope();
  const folder = await scope.tempDir();
  const [from, to] = [join(folder, 'from'), join(folder, 'to')];
  await writeFile(from, content);
  await writeFile(to, Buffer.alloc(64 * KIB, 0xee));
  const source = await DiskFile.open(from, { writable: false, direct: false });
  const target = await DiskFile.open(to, { writable: true, direct });
  scope.defer(() => source.close());
  scope.defer(() => target.close());
  return { source, target, written: () => readFile(to) };
}

/** The real call, with what comes of the `nth` one (of those that copy) said by `plan`: bytes at most, or -1. */
function planned(plan: readonly number[]): { call: CopyCall; lengths: number[] } {
  const lengths: number[] = [];
  const call: CopyCall = Object.assign(
    (...args: Parameters<typeof native.copyFileRange>): number => native.copyFileRange(...args),
    {
      async: (
        ...[from, at, to, toAt, length, flags, done]: Parameters<CopyCall['async']>
      ): void => {
        const most = plan[lengths.length] ?? length;
        lengths.push(length);
        if (most >= 0) {
          native.copyFileRange.async(from, at, to, toAt, Math.min(length, most), flags, done);
        } else native.pread.async(-1, Buffer.alloc(1), 1, 0, done);
      },
    },
  );
  return { call, lengths };
}

it('copies bytes from any place to any other, past the end of the target too', async () => {
  const content = patternBytes(300 * KIB, 1);
  const { source, target, written } = await files(content);
  const copier = new FileCopier(target);
  expect(copier.takes(source)).toBe(true);
  expect(await copier.copy(60 * KIB + 1, source, 4097, 200 * KIB)).toBe(200 * KIB);
  const expected = Buffer.alloc(260 * KIB + 1, 0xee);
  content.copy(expected, 60 * KIB + 1, 4097, 4097 + 200 * KIB);
  expect((await written()).equals(expected)).toBe(true);
});

it('goes on where a call has copied only a part', async () => {
  const content = patternBytes(100 * KIB, 2);
  const { source, target, written } = await files(content);
  const { call, lengths } = planned([10 * KIB, 1]);
  expect(await new FileCopier(target, call).copy(0, source, 0, 100 * KIB)).toBe(100 * KIB);
  expect(lengths).toEqual([100 * KIB, 90 * KIB, 90 * KIB - 1]);
  expect((await written()).equals(content)).toBe(true);
});

it('asks for no more in one call than may hold up a cancelled job', async () => {
  const { source, target } = await files(Buffer.alloc(0));
  const { call, lengths } = planned([]);
  await new FileCopier(target, call).copy(0, source, 0, 2 * FILE_COPY_STEP);
  expect(lengths).toEqual([FILE_COPY_STEP]);
});

it('tells what was copied before the source ended', async () => {
  const { source, target } = await files(patternBytes(10 * KIB, 3));
  const copier = new FileCopier(target);
  expect(await copier.copy(0, source, 4 * KIB, 64 * KIB)).toBe(6 * KIB);
  expect(copier.takes(source)).toBe(true);
});

it('tells what was copied before an error, and takes nothing more from that file', async () => {
  const { source, target } = await files(patternBytes(MIB, 4));
  const { call } = planned([8 * KIB, -1]);
  const copier = new FileCopier(target, call);
  expect(await copier.copy(0, source, 0, MIB)).toBe(8 * KIB);
  expect(copier.takes(source)).toBe(false);
  const other = await files(patternBytes(MIB, 4));
  expect(copier.takes(other.source)).toBe(true);
});

it('knows before it copies that two file systems have no way between them', async () => {
  const { source, target } = await files(patternBytes(KIB, 5));
  const call: CopyCall = Object.assign(() => -1, { async: () => expect.fail('called') });
  expect(new FileCopier(target, call).takes(source)).toBe(false);
});

it('does not write past the page cache', async () => {
  const { source, target } = await files(patternBytes(KIB, 6), true);
  expect(new FileCopier(target).takes(source)).toBe(false);
});

it('keeps the target open while it copies', async () => {
  const { source, target } = await files(patternBytes(MIB, 7));
  const copying = new FileCopier(target).copy(0, source, 0, MIB);
  await target.close();
  expect(await copying).toBe(MIB);
});
