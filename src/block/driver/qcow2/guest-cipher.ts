// SPDX-License-Identifier: MIT
/** The guest's data on its way between the request and the file. Places are in bytes. */
import { CRYPTO_TURN_LENGTH } from '../../../base/limits.js';
import { isPromise, type MaybePromise } from '../../../base/maybe-promise.js';
import { CRYPTO_SECTOR_SIZE, type SectorCipher } from '../../crypto/sector-cipher.js';
import type { Qcow2Image } from './image.js';
import { type ImageIo, readPadded } from './image-io.js';

/** The same bytes as the guest sees them and where they lie in the file. */
export interface DataPlace {
  readonly host: number;
  readonly guest: number;
}

export class GuestCipher {
  readonly #cipher: SectorCipher;
  readonly #numberedBy: keyof DataPlace;

  /** @param numberedBy which place of a sector makes its number: LUKS goes by the file, old AES by the disk */
  constructor(cipher: SectorCipher, numberedBy: keyof DataPlace) {
    this.#cipher = cipher;
    this.#numberedBy = numberedBy;
  }

  /** Reads and decrypts whole sectors; what lies past the end of `io` counts as zeroes in the file. */
  read(io: ImageIo, place: DataPlace, buffer: Buffer): MaybePromise<void> {
    const pending = readPadded(io, place.host, buffer);
    if (isPromise(pending)) return pending.then(() => this.#decrypt(place, buffer));
    return this.#decrypt(place, buffer);
  }

  /** Encrypts whole sectors, in memory of its own, and writes them. */
  write(io: ImageIo, place: DataPlace, buffer: Buffer): MaybePromise<void> {
    const sealed = Buffer.allocUnsafe(buffer.byteLength);
    this.#cipher.encrypt(this.#sector(place), buffer, sealed);
    const pending = io.write(place.host, sealed);
    if (isPromise(pending) || buffer.byteLength < CRYPTO_TURN_LENGTH) return pending;
    return nextTurn();
  }

  #decrypt(place: DataPlace, buffer: Buffer): MaybePromise<void> {
    this.#cipher.decrypt(this.#sector(place), buffer, buffer);
    if (buffer.byteLength >= CRYPTO_TURN_LENGTH) return nextTurn();
  }

  #sector(place: DataPlace): number {
    return place[this.#numberedBy] / CRYPTO_SECTOR_SIZE;
  }
}

/** Reads data of an image as the guest sees it. */
export function readData(
  image: Qcow2Image,
  host: number,
  guest: number,
  buffer: Buffer,
): MaybePromise<void> {
  if (image.encryption === undefined) return readPadded(image.data, host, buffer);
  return image.cipher.read(image.data, { host, guest }, buffer);
}

/** Writes data of the guest's to where it belongs in the file. */
export function writeData(
  image: Qcow2Image,
  host: number,
  guest: number,
  buffer: Buffer,
): MaybePromise<void> {
  if (image.encryption === undefined) return image.data.write(host, buffer);
  return image.cipher.write(image.data, { host, guest }, buffer);
}

/** A long stretch of encryption lets others have their turn. */
function nextTurn(): Promise<void> {
  return new Promise((resume) => setImmediate(resume));
}
