// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { BlockError } from '../../../../src/base/errors.js';
import { contentOf, filterGraph, memoryOf } from './filter-graph.js';

const SIZE = 64 * 1024;

async function verified() {
  const filters = filterGraph();
  const memory = (name: string) => ({ driver: 'memory', 'node-name': name, size: SIZE });
  const node = await filters.add({
    ...{ driver: 'blkverify', 'node-name': 'v', test: memory('test'), raw: memory('raw') },
  });
  const [test, raw] = ['test', 'raw'].map((name) => memoryOf(filters.graph.get(name)));
  if (test === undefined || raw === undefined) throw new Error('no children');
  await filters.use(node);
  return { node, test, raw };
}

it('writes to both and reads what both agree on', async () => {
  const { node, test, raw } = await verified();
  await node.write(100, Buffer.from('abc'));
  await node.writeZeroes(101, 1);
  await node.flush();
  expect((await contentOf(node, 100, 3)).toString()).toBe('a\0c');
  expect(test.data.equals(raw.data)).toBe(true);
});

it('fails a read that differs and says where', async () => {
  const { node, raw } = await verified();
  raw.data[1234] = 1;
  await expect(contentOf(node, 1000, 512)).rejects.toThrow(
    'blkverify: read offset=1000 bytes=512 contents mismatch at offset 1234',
  );
  expect((await contentOf(node, 0, 1000)).length).toBe(1000);
});

it('fails a request that only one of them fails', async () => {
  const { node, test } = await verified();
  test.fail.write = new BlockError('DF_NO_SPACE', 'full', { errno: 'ENOSPC' });
  await expect(node.write(0, Buffer.alloc(8))).rejects.toThrow(
    'blkverify: write offset=0 bytes=8 return value mismatch ENOSPC != success',
  );
});

it('passes on an error that both have', async () => {
  const { node, test, raw } = await verified();
  test.fail.read = new BlockError('DF_IO', 'gone', { errno: 'EIO' });
  raw.fail.read = new BlockError('DF_IO', 'gone too', { errno: 'EIO' });
  await expect(contentOf(node, 0, 8)).rejects.toThrow('gone');
});
