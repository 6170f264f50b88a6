// SPDX-License-Identifier: MIT
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ImageLocks } from '../../../src/sys/locks.js';
import { testScope } from '../../support/temp.js';

const NAMES = ['a', 'b', 'c'];
const [A, B, C] = [1, 2, 4];
const ALL = 7;

/** Two holders of one file, as two processes would be: locks belong to the open file description. */
async function twoHolders(): Promise<{ one: ImageLocks; other: ImageLocks; closeOne(): unknown }> {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'image');
  await writeFile(path, '');
  const first = await open(path, 'r');
  const second = await open(path, 'r+');
  scope.defer(() => second.close());
  scope.defer(() => first.close());
  return {
    one: new ImageLocks(first.fd, path, NAMES),
    other: new ImageLocks(second.fd, path, NAMES),
    closeOne: () => first.close(),
  };
}

describe('ImageLocks', () => {
  it('lets two take the same permission when both share it', async () => {
    const { one, other } = await twoHolders();
    for (const locks of [one, other]) {
      locks.add({ taken: A | B, shared: ALL });
      locks.check({ taken: A | B, shared: ALL });
    }
  });

  it('refuses to take what another does not share', async () => {
    const { one, other } = await twoHolders();
    one.add({ taken: 0, shared: A });
    other.add({ taken: A | C, shared: ALL });
    other.check({ taken: A, shared: ALL });
    expect(() => other.check({ taken: A | C, shared: ALL })).toThrow('Failed to get "c" lock');
  });

  it('refuses not to share what another takes', async () => {
    const { one, other } = await twoHolders();
    one.add({ taken: B, shared: ALL });
    other.add({ taken: 0, shared: A });
    expect(() => other.check({ taken: 0, shared: A })).toThrow('Failed to get shared "b" lock');
  });

  it('gives up what is not needed any more, and nothing else', async () => {
    const { one, other } = await twoHolders();
    one.add({ taken: A | B, shared: A });
    one.reduce({ taken: B, shared: A | B });
    other.check({ taken: B, shared: B | C });
    expect(() => other.check({ taken: C, shared: ALL })).toThrow('Failed to get "c" lock');
    expect(() => other.check({ taken: 0, shared: A })).toThrow('Failed to get shared "b" lock');
    other.check({ taken: 0, shared: B });
  });

  it('never stands in its own way', async () => {
    const { one } = await twoHolders();
    one.add({ taken: ALL, shared: 0 });
    one.check({ taken: ALL, shared: 0 });
  });

  it('ends with the descriptor', async () => {
    const { one, other, closeOne } = await twoHolders();
    one.add({ taken: ALL, shared: 0 });
    expect(() => other.check({ taken: A, shared: ALL })).toThrow('Failed to get "a" lock');
    await closeOne();
    other.check({ taken: A, shared: ALL });
  });

  it('says why when a lock can not be had at all', async () => {
    const locks = new ImageLocks(1_000_000, '/nowhere', NAMES);
    expect(() => locks.add({ taken: A, shared: ALL })).toThrow('Failed to lock byte 100');
    try {
      locks.check({ taken: A, shared: ALL });
    } catch (error) {
      expect(error).toMatchObject({ cause: { code: 'EBADF', message: 'Bad file descriptor' } });
    }
  });
});
