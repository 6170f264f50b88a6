// SPDX-License-Identifier: MIT
/** A field table becomes a codec. Pure: no I/O, no node: imports. */
const KINDS = {
  u8: { size: 1, max: 0xff, get: 'getUint8', set: 'setUint8' },
  u16: { size: 2, max: 0xffff, get: 'getUint16', set: 'setUint16' },
  u32: { size: 4, max: 0xffff_ffff, get: 'getUint32', set: 'setUint32' },
  u64: { size: 8, max: 0xffff_ffff_ffff_ffffn, get: 'getBigUint64', set: 'setBigUint64' },
} as const;
type Kind = keyof typeof KINDS;
type Fields = Readonly<Record<string, Kind>>;
export type Decoded<F extends Fields> = { [K in keyof F]: F[K] extends 'u64' ? bigint : number };

/** Packed big-endian struct: fields lie on the wire in table order, without padding. */
export class Struct<const F extends Fields> {
  readonly #slots: { field: string; at: number; kind: (typeof KINDS)[Kind] }[] = [];

  /** @param size bytes, as the spec states it; a table that adds up to another size is a bug */
  constructor(
    readonly name: string,
    readonly size: number,
    fields: F,
  ) {
    let at = 0;
    for (const [field, kind] of Object.entries(fields)) {
      this.#slots.push({ field, at, kind: KINDS[kind] });
      at += KINDS[kind].size;
    }
    if (at !== size) throw new RangeError(`${name}: fields add up to ${at} bytes, not ${size}`);
  }

  /** @throws RangeError when a value does not fit its field or `target` is too short */
  encode(value: Decoded<F>, target: Uint8Array): void {
    const view = this.#view(target);
    const values: Readonly<Record<string, number | bigint>> = value;
    for (const { field, at, kind } of this.#slots) {
      const x = values[field];
      if (x === undefined || x < 0 || x > kind.max) {
        throw new RangeError(`${this.name}.${field}: ${x} does not fit`);
      }
      view[kind.set](at, x as never); // the row pairs a kind with its setter
    }
  }

  /** The struct as fresh bytes. */
  toBytes(value: Decoded<F>): Uint8Array {
    const bytes = new Uint8Array(this.size);
    this.encode(value, bytes);
    return bytes;
  }

  /** @throws RangeError when `source` is shorter than the struct */
  decode(source: Uint8Array): Decoded<F> {
    const view = this.#view(source);
    const value: Record<string, number | bigint> = {};
    for (const { field, at, kind } of this.#slots) value[field] = view[kind.get](at);
    return value as Decoded<F>;
  }

  /** A view that cannot reach past `bytes`, even when its buffer is a larger shared pool. */
  #view(bytes: Uint8Array): DataView {
    const { name, size } = this;
    if (bytes.byteLength < size) throw new RangeError(`${name}: ${bytes.byteLength} < ${size}`);
    return new DataView(bytes.buffer, bytes.byteOffset, size);
  }
}
