// SPDX-License-Identifier: MIT
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Secrets } from '../../src/block/crypto/secrets.js';
import { createLuks, type LuksCreateOptions } from '../../src/block/driver/luks.js';
import type { Scope } from './temp.js';

export const PASSPHRASE = 'correct horse';

/** Secrets with these passphrases by id. */
export async function secretsWith(given: Readonly<Record<string, string>>): Promise<Secrets> {
  const secrets = new Secrets();
  for (const [id, data] of Object.entries(given)) secrets.add(id, await secrets.load({ data }));
  return secrets;
}

/** A new image in memory that takes PASSPHRASE; unlocking it is quick. */
export async function luksImage(
  options: Partial<LuksCreateOptions> & { readonly size: number },
): Promise<Buffer> {
  let image = Buffer.alloc(0);
  await createLuks(
    {
      truncate: async (size) => {
        image = Buffer.alloc(size);
      },
      write: (offset, bytes) => {
        bytes.copy(image, offset);
      },
      flush: () => undefined,
    },
    { passphrase: Buffer.from(PASSPHRASE), iterTimeMs: 1, ...options },
  );
  return image;
}

/** The same in a file. @returns its path */
export async function luksFile(
  scope: Scope,
  options: Partial<LuksCreateOptions> & { readonly size: number },
): Promise<string> {
  const path = join(await scope.tempDir(), 'disk.luks');
  await writeFile(path, await luksImage(options));
  return path;
}
