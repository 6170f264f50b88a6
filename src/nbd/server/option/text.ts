// SPDX-License-Identifier: MIT
/** Strings and counts in option data, each checked before it is used. */
import { NBD_STRING_MAX } from '../../../base/limits.js';

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Bytes as text; undefined where they are no legal string. @see proto.md "Values" */
export function textOf(bytes: Uint8Array): string | undefined {
  if (bytes.byteLength > NBD_STRING_MAX || bytes.includes(0)) return undefined;
  try {
    return UTF8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Takes fields off the front of option data; undefined where it is too short. */
export class OptionReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  /** Bytes not taken yet. */
  get left(): number {
    return this.#data.byteLength - this.#at;
  }

  u16(): number | undefined {
    if (this.left < 2) return undefined;
    this.#at += 2;
    return this.#data.readUInt16BE(this.#at - 2);
  }

  u32(): number | undefined {
    if (this.left < 4) return undefined;
    this.#at += 4;
    return this.#data.readUInt32BE(this.#at - 4);
  }

  /** A string behind its 32-bit length. */
  text(): string | undefined {
    const length = this.u32();
    if (length === undefined || length > this.left) return undefined;
    this.#at += length;
    return textOf(this.#data.subarray(this.#at - length, this.#at));
  }
}
