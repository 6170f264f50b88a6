// SPDX-License-Identifier: MIT
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { inPool, native, SEEK_HOLE } from '../../../src/sys/linux.js';
import { testScope } from '../../support/temp.js';

describe('the thread pool', () => {
  it('takes any number of calls at a time, and tells each what became of it', async () => {
    const file = await open(join(await testScope().tempDir(), 'file'), 'w+');
    await file.truncate(4096);
    const calls = Array.from({ length: 2000 }, (_, nth) => {
      const fd = nth % 10 === 9 ? -1 : file.fd;
      return inPool(native.lseek, 'lseek', fd, nth, SEEK_HOLE);
    });
    const results = await Promise.allSettled(calls);
    await file.close();
    results.forEach((result, nth) => {
      if (nth % 10 !== 9) expect(result).toEqual({ status: 'fulfilled', value: nth });
      else expect(result).toMatchObject({ reason: { code: 'EBADF' } });
    });
  });
});
