// SPDX-License-Identifier: MIT
/**
 * The `secret` objects: passphrases and keys by id. What is in them is never logged, never part of an
 * error's text and never told by a query; only those who open an image get it.
 * @see qapi SecretProperties
 */
import { isUtf8 } from 'node:buffer';
import { createDecipheriv } from 'node:crypto';
import { BlockError, fromSystemError } from '../../base/errors.js';
import { SECRET_LENGTH_MAX } from '../../base/limits.js';

export type SecretFormat = 'raw' | 'base64';

/** How a secret is given: `data` or `file`, not both. */
export interface SecretProperties {
  readonly data?: string | undefined;
  readonly file?: string | undefined;
  readonly format?: SecretFormat | undefined;
  /** Id of the secret, 32 bytes, that what is given is encrypted with (AES-256-CBC). */
  readonly keyid?: string | undefined;
  /** Its initialization vector, base64. */
  readonly iv?: string | undefined;
}

/** What may be known of a secret. */
export interface SecretDescription {
  readonly file: string;
  readonly format: SecretFormat;
  readonly keyid: string;
  readonly iv: string;
}

/** A secret on its way from `load` to `add`. */
export interface LoadedSecret {
  readonly description: SecretDescription;
  readonly value: Buffer;
}

const KEY_BYTES = 32;
const VECTOR_BYTES = 16;
const BLOCK = 16;

export class Secrets {
  readonly #secrets = new Map<string, LoadedSecret>();

  /**
   * Reads and decrypts what is given, for `add`.
   * @throws BlockError DF_INVALID, DF_NOT_FOUND, in QEMU's words
   */
  async load(properties: SecretProperties): Promise<LoadedSecret> {
    const value = await this.#load(properties);
    const { file = '', format = 'raw', keyid = '', iv = '' } = properties;
    return { description: { file, format, keyid, iv }, value };
  }

  /** @throws BlockError DF_EXISTS */
  add(id: string, secret: LoadedSecret): void {
    if (this.#secrets.has(id)) {
      throw new BlockError('DF_EXISTS', `A secret with id '${id}' already exists`);
    }
    this.#secrets.set(id, secret);
  }

  has(id: string): boolean {
    return this.#secrets.has(id);
  }

  /** What may be told of it; undefined: there is none. */
  describe(id: string): SecretDescription | undefined {
    return this.#secrets.get(id)?.description;
  }

  get ids(): string[] {
    return [...this.#secrets.keys()];
  }

  /** Images stay open: they needed it to be opened only. @returns false when there is none */
  remove(id: string): boolean {
    this.#secrets.get(id)?.value.fill(0);
    return this.#secrets.delete(id);
  }

  /** The bytes of a secret, a copy. @throws BlockError DF_NOT_FOUND */
  bytes(id: string): Buffer {
    const secret = this.#secrets.get(id);
    if (secret === undefined) throw new BlockError('DF_NOT_FOUND', `No secret with id '${id}'`);
    return Buffer.from(secret.value);
  }

  /**
   * A secret that is a passphrase: text, in UTF-8, without NUL.
   * @throws BlockError DF_NOT_FOUND, DF_INVALID
   */
  passphrase(id: string): Buffer {
    const bytes = this.bytes(id);
    if (!isUtf8(bytes) || bytes.includes(0)) {
      throw new BlockError('DF_INVALID', `Data from secret ${id} is not valid UTF-8`);
    }
    return bytes;
  }

  /**
   * The passphrase that an option names.
   * @throws BlockError DF_INVALID, naming the option, when it names none; as `passphrase`
   */
  required(id: string | undefined, option: string): Buffer {
    if (id !== undefined) return this.passphrase(id);
    throw new BlockError('DF_INVALID', `Parameter '${option}' is required for cipher`);
  }

  async #load(properties: SecretProperties): Promise<Buffer> {
    const { format = 'raw', keyid } = properties;
    const given = await readGiven(properties);
    if (keyid === undefined) return format === 'base64' ? fromBase64(given.toString()) : given;
    const key = this.bytes(keyid);
    if (key.byteLength !== KEY_BYTES) throw invalid('Key should be 32 bytes in length');
    if (properties.iv === undefined) throw invalid('IV is required to decrypt secret');
    const vector = fromBase64(properties.iv);
    if (vector.byteLength !== VECTOR_BYTES) {
      throw invalid(`IV should be 16 bytes in length not ${vector.byteLength}`);
    }
    return decrypt(format === 'base64' ? fromBase64(given.toString()) : given, key, vector);
  }
}

async function readGiven({ data, file }: SecretProperties): Promise<Buffer> {
  if (file !== undefined && data !== undefined) {
    throw invalid("'file' and 'data' are mutually exclusive");
  }
  if (data !== undefined) return Buffer.from(data);
  if (file === undefined) throw invalid("Either 'file' or 'data' must be provided");
  try {
    return await readBounded(file);
  } catch (error) {
    if (error instanceof BlockError) throw error;
    throw fromSystemError(error, `Unable to read ${file}`, { path: file });
  }
}

/** All of a file or a pipe that is not endless. */
async function readBounded(path: string): Promise<Buffer> {
  // Loaded with what it needs of streams only for this: it would cost every start 3 ms.
  const { open } = await import('node:fs/promises');
  const handle = await open(path, 'r');
  try {
    const chunks: Buffer[] = [];
    let total = 0;
    for (;;) {
      const { bytesRead, buffer } = await handle.read({
        buffer: Buffer.alloc(4096),
        position: null,
      });
      if (bytesRead === 0) return Buffer.concat(chunks);
      total += bytesRead;
      if (total > SECRET_LENGTH_MAX) {
        throw invalid(`Unable to read ${path}: it has more than ${SECRET_LENGTH_MAX} bytes`);
      }
      chunks.push(buffer.subarray(0, bytesRead));
    }
  } finally {
    await handle.close();
  }
}

/** Line breaks and blanks are skipped; a last group may lack its padding. */
function fromBase64(text: string): Buffer {
  // Blanks are matched in one place only: two that may share them would take the square of their number.
  if (!/^[A-Za-z0-9+/\s]*(?:={1,2}\s*)?$/.test(text)) {
    throw invalid('Base64 data contains invalid characters');
  }
  return Buffer.from(text, 'base64');
}

function decrypt(ciphertext: Buffer, key: Buffer, vector: Buffer): Buffer {
  const { byteLength } = ciphertext;
  if (byteLength === 0 || byteLength % BLOCK !== 0) {
    throw invalid(`Length ${byteLength} must be a multiple of block size ${BLOCK}`);
  }
  const decipher = createDecipheriv('aes-256-cbc', key, vector);
  decipher.setAutoPadding(false);
  const plain = Buffer.concat([decipher.update(ciphertext), decipher.final()]);
  const padding = plain.at(-1) ?? 0;
  // QEMU tells the number, which is a byte of what the wrong key made of the secret.
  if (padding > BLOCK) {
    throw invalid('Incorrect number of padding bytes found on decrypted data');
  }
  return plain.subarray(0, byteLength - padding);
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
