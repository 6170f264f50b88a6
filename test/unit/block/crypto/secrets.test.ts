// SPDX-License-Identifier: MIT
import { createCipheriv } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type SecretProperties, Secrets } from '../../../../src/block/crypto/secrets.js';
import { testScope } from '../../../support/temp.js';

const MASTER = Buffer.from('0123456789abcdef0123456789abcdef');
const VECTOR = Buffer.from('fedcba9876543210');

async function withMaster(): Promise<Secrets> {
  const secrets = new Secrets();
  const data = MASTER.toString('base64');
  secrets.add('master', await secrets.load({ data, format: 'base64' }));
  return secrets;
}

async function added(properties: SecretProperties, secrets = new Secrets()): Promise<Secrets> {
  secrets.add('s', await secrets.load(properties));
  return secrets;
}

function sealed(text: string): string {
  const cipher = createCipheriv('aes-256-cbc', MASTER, VECTOR);
  return Buffer.concat([cipher.update(text), cipher.final()]).toString('base64');
}

describe('secrets', () => {
  it('are given as they are, in base64, or in a file', async () => {
    expect((await added({ data: 'hunter2' })).bytes('s').toString()).toBe('hunter2');
    const binary = await added({ data: '//4AAQ==', format: 'base64' });
    expect([...binary.bytes('s')]).toEqual([0xff, 0xfe, 0, 1]);
    const lines = await added({ data: ' //4A\nAQ== \n', format: 'base64' });
    expect([...lines.bytes('s')]).toEqual([0xff, 0xfe, 0, 1]);
    const file = join(await testScope().tempDir(), 'secret');
    await writeFile(file, 'from a file\n');
    expect((await added({ file })).bytes('s').toString()).toBe('from a file\n');
  });

  it('are decrypted with another one', async () => {
    for (const text of ['', 'hunter2', 'x'.repeat(16), 'y'.repeat(5000)]) {
      const given = { data: sealed(text), format: 'base64', keyid: 'master' } as const;
      const secrets = await added({ ...given, iv: VECTOR.toString('base64') }, await withMaster());
      expect(secrets.bytes('s').toString()).toBe(text);
    }
  });

  it.each<[string, SecretProperties]>([
    ["Either 'file' or 'data' must be provided", {}],
    ["'file' and 'data' are mutually exclusive", { data: 'a', file: 'b' }],
    ['Unable to read /does/not/exist', { file: '/does/not/exist' }],
    ['Base64 data contains invalid characters', { data: 'S3cret!', format: 'base64' }],
    // A pattern that tries every way to split the blanks would take hours.
    [
      'Base64 data contains invalid characters',
      { data: `${' '.repeat(1 << 20)}!`, format: 'base64' },
    ],
    ["No secret with id 'nobody'", { data: 'a', keyid: 'nobody' }],
    ['Key should be 32 bytes in length', { data: 'a', keyid: 'short' }],
    ['IV is required to decrypt secret', { data: 'a', keyid: 'master' }],
    ['IV should be 16 bytes in length not 3', { data: 'a', keyid: 'master', iv: 'MDEy' }],
    [
      'Length 7 must be a multiple of block size 16',
      { data: 'S3cret!', keyid: 'master', iv: VECTOR.toString('base64') },
    ],
    [
      'Incorrect number of padding bytes found on decrypted data',
      { data: 'S3cret!S3cret!S3', keyid: 'master', iv: VECTOR.toString('base64') },
    ],
  ])('%s', async (message, properties) => {
    const secrets = await withMaster();
    secrets.add('short', await secrets.load({ data: 'short' }));
    const failed = secrets.load(properties);
    await expect(failed).rejects.toThrow(message);
    await expect(failed).rejects.not.toThrow('S3cret');
  });

  it('are no longer than a mebibyte, also from a file without an end', async () => {
    const secrets = new Secrets();
    await expect(secrets.load({ file: '/dev/zero' })).rejects.toThrow('more than 1048576 bytes');
  });

  it('tell where they come from, not what they are', async () => {
    const secrets = await added({ data: 'hunter2' });
    expect(secrets.describe('s')).toEqual({ file: '', format: 'raw', keyid: '', iv: '' });
    expect(JSON.stringify(secrets)).not.toContain('hunter2');
  });

  it('are gone when removed', async () => {
    const secrets = await added({ data: 'hunter2' });
    expect(secrets.remove('s')).toBe(true);
    expect(secrets.remove('s')).toBe(false);
    expect(() => secrets.bytes('s')).toThrow("No secret with id 's'");
  });

  it('are passphrases only when they are text', async () => {
    expect((await added({ data: 'pässword' })).passphrase('s').toString()).toBe('pässword');
    for (const bytes of [Buffer.from([0xff, 0xfe]), Buffer.from('a\0b')]) {
      const secrets = await added({ data: bytes.toString('base64'), format: 'base64' });
      expect(() => secrets.passphrase('s')).toThrow('Data from secret s is not valid UTF-8');
    }
  });
});
