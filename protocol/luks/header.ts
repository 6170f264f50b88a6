// SPDX-License-Identifier: MIT
/**
 * The LUKS version 1 header: 592 bytes at the start of an encrypted image, big-endian.
 * @see LUKS On-Disk Format Specification 1.2.1, section 2
 */

export const LUKS_MAGIC = Uint8Array.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe); // "LUKS" 0xba 0xbe
export const LUKS_VERSION = 1;
export const LUKS_HEADER_SIZE = 592;
/** Unit of offsets in the header and of encryption, bytes. */
export const LUKS_SECTOR_SIZE = 512;
export const LUKS_KEY_SLOTS = 8;
export const LUKS_SLOT_ENABLED = 0x00ac71f3;
export const LUKS_SLOT_DISABLED = 0x0000dead;
/** Parts into which key material is split, so that losing one destroys it. */
export const LUKS_STRIPES = 4000;
export const LUKS_SALT_SIZE = 32;
/** Bytes of the digest by which a master key is recognized. */
export const LUKS_DIGEST_SIZE = 20;
/** Key material starts at multiples of this, the first one here. Bytes. */
export const LUKS_SLOT_ALIGNMENT = 4096;

const NAME_SIZE = 32;
const UUID_SIZE = 40;
const SLOT_SIZE = 48;

// Offsets of the fields, bytes.
const AT = {
  version: 6,
  cipherName: 8,
  cipherMode: 40,
  hashSpec: 72,
  payloadOffset: 104,
  keyBytes: 108,
  digest: 112,
  digestSalt: 132,
  digestIterations: 164,
  uuid: 168,
  slots: 208,
} as const;
const SLOT_AT = { state: 0, iterations: 4, salt: 8, keyOffset: 40, stripes: 44 } as const;

export interface LuksKeySlot {
  /** LUKS_SLOT_ENABLED or LUKS_SLOT_DISABLED; anything else is corruption. */
  readonly state: number;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Where the key material starts, sectors. */
  readonly keyOffsetSector: number;
  readonly stripes: number;
}

export interface LuksHeader {
  readonly version: number;
  /** Undefined: the name in the image has no end. The same for the next two. */
  readonly cipherName: string | undefined;
  readonly cipherMode: string | undefined;
  readonly hashSpec: string | undefined;
  /** Where the encrypted data starts, sectors. */
  readonly payloadOffsetSector: number;
  /** Length of the master key, bytes. */
  readonly keyBytes: number;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  /** Always LUKS_KEY_SLOTS of them. */
  readonly slots: readonly LuksKeySlot[];
}

/** True when `bytes` starts as a LUKS image of any version does. */
export function hasLuksMagic(bytes: Uint8Array): boolean {
  return (
    bytes.byteLength >= LUKS_MAGIC.byteLength &&
    LUKS_MAGIC.every((byte, index) => bytes[index] === byte)
  );
}

/** Field by field, whatever the values; `luksHeaderProblem` judges them. The magic is not looked at. */
export function decodeLuksHeader(bytes: Uint8Array): LuksHeader {
  if (bytes.byteLength < LUKS_HEADER_SIZE) {
    throw new RangeError(`LUKS header: ${bytes.byteLength} < ${LUKS_HEADER_SIZE}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, LUKS_HEADER_SIZE);
  const part = (at: number, size: number): Uint8Array => bytes.slice(at, at + size);
  const slots = Array.from({ length: LUKS_KEY_SLOTS }, (_, index): LuksKeySlot => {
    const at = AT.slots + index * SLOT_SIZE;
    return {
      state: view.getUint32(at + SLOT_AT.state),
      iterations: view.getUint32(at + SLOT_AT.iterations),
      salt: part(at + SLOT_AT.salt, LUKS_SALT_SIZE),
      keyOffsetSector: view.getUint32(at + SLOT_AT.keyOffset),
      stripes: view.getUint32(at + SLOT_AT.stripes),
    };
  });
  return {
    version: view.getUint16(AT.version),
    cipherName: text(part(AT.cipherName, NAME_SIZE)),
    cipherMode: text(part(AT.cipherMode, NAME_SIZE)),
    hashSpec: text(part(AT.hashSpec, NAME_SIZE)),
    payloadOffsetSector: view.getUint32(AT.payloadOffset),
    keyBytes: view.getUint32(AT.keyBytes),
    digest: part(AT.digest, LUKS_DIGEST_SIZE),
    digestSalt: part(AT.digestSalt, LUKS_SALT_SIZE),
    digestIterations: view.getUint32(AT.digestIterations),
    uuid: text(part(AT.uuid, UUID_SIZE)) ?? '',
    slots,
  };
}

/** The header as bytes, magic included. @throws RangeError when a name or salt does not fit */
export function encodeLuksHeader(header: LuksHeader): Uint8Array {
  const bytes = new Uint8Array(LUKS_HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  bytes.set(LUKS_MAGIC);
  view.setUint16(AT.version, header.version);
  putText(bytes, AT.cipherName, NAME_SIZE, header.cipherName ?? '');
  putText(bytes, AT.cipherMode, NAME_SIZE, header.cipherMode ?? '');
  putText(bytes, AT.hashSpec, NAME_SIZE, header.hashSpec ?? '');
  view.setUint32(AT.payloadOffset, header.payloadOffsetSector);
  view.setUint32(AT.keyBytes, header.keyBytes);
  putBytes(bytes, AT.digest, LUKS_DIGEST_SIZE, header.digest);
  putBytes(bytes, AT.digestSalt, LUKS_SALT_SIZE, header.digestSalt);
  view.setUint32(AT.digestIterations, header.digestIterations);
  putText(bytes, AT.uuid, UUID_SIZE, header.uuid);
  if (header.slots.length !== LUKS_KEY_SLOTS) {
    throw new RangeError(`LUKS header: ${header.slots.length} key slots, not ${LUKS_KEY_SLOTS}`);
  }
  for (const [index, slot] of header.slots.entries()) {
    const at = AT.slots + index * SLOT_SIZE;
    view.setUint32(at + SLOT_AT.state, slot.state);
    view.setUint32(at + SLOT_AT.iterations, slot.iterations);
    putBytes(bytes, at + SLOT_AT.salt, LUKS_SALT_SIZE, slot.salt);
    view.setUint32(at + SLOT_AT.keyOffset, slot.keyOffsetSector);
    view.setUint32(at + SLOT_AT.stripes, slot.stripes);
  }
  return bytes;
}

/** Sectors that the key material of one slot takes. @param keyBytes length of the master key, bytes */
export function keyMaterialSectors(keyBytes: number, stripes: number): number {
  const alignment = LUKS_SLOT_ALIGNMENT / LUKS_SECTOR_SIZE;
  const sectors = Math.ceil((keyBytes * stripes) / LUKS_SECTOR_SIZE);
  return Math.ceil(sectors / alignment) * alignment;
}

/**
 * What is wrong with a header, in one sentence; undefined when its values fit each other.
 * Names of ciphers and hashes are left to `parseLuksCipher`.
 */
export function luksHeaderProblem(header: LuksHeader): string | undefined {
  if (header.version !== LUKS_VERSION) return `LUKS version ${header.version} is not supported`;
  for (const [what, name] of [
    ['cipher name', header.cipherName],
    ['cipher mode', header.cipherMode],
    ['hash spec', header.hashSpec],
  ] as const) {
    if (name === undefined) return `LUKS header ${what} is not NUL terminated`;
  }
  if (header.payloadOffsetSector < LUKS_SLOT_ALIGNMENT / LUKS_SECTOR_SIZE) {
    return 'LUKS payload is overlapping with the header';
  }
  if (header.digestIterations === 0) return 'LUKS key iteration count is zero';
  for (let index = 0; index < header.slots.length; index++) {
    const problem = slotProblem(header, index);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

function slotProblem(header: LuksHeader, index: number): string | undefined {
  const slot = header.slots[index];
  if (slot === undefined) return undefined;
  if (slot.stripes !== LUKS_STRIPES) {
    return `Keyslot ${index} is corrupted (stripes ${slot.stripes} != ${LUKS_STRIPES})`;
  }
  if (slot.state !== LUKS_SLOT_ENABLED && slot.state !== LUKS_SLOT_DISABLED) {
    return `Keyslot ${index} state (active/disable) is corrupted`;
  }
  if (slot.state === LUKS_SLOT_ENABLED && slot.iterations === 0) {
    return `Keyslot ${index} iteration count is zero`;
  }
  if (slot.keyOffsetSector < LUKS_SLOT_ALIGNMENT / LUKS_SECTOR_SIZE) {
    return `Keyslot ${index} is overlapping with the LUKS header`;
  }
  const length = keyMaterialSectors(header.keyBytes, LUKS_STRIPES);
  if (slot.keyOffsetSector + length > header.payloadOffsetSector) {
    return `Keyslot ${index} is overlapping with the encrypted payload`;
  }
  const other = header.slots.findIndex(
    ({ keyOffsetSector }, at) =>
      at > index && Math.abs(keyOffsetSector - slot.keyOffsetSector) < length,
  );
  if (other === -1) return undefined;
  return `Keyslots ${index} and ${other} are overlapping in the header`;
}

/** Up to the first NUL; undefined when there is none. */
function text(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  return end === -1 ? undefined : String.fromCharCode(...bytes.subarray(0, end));
}

function putText(target: Uint8Array, at: number, size: number, value: string): void {
  if (value.length >= size) throw new RangeError(`LUKS header: '${value}' is too long`);
  for (let index = 0; index < value.length; index++) target[at + index] = value.charCodeAt(index);
}

function putBytes(target: Uint8Array, at: number, size: number, value: Uint8Array): void {
  if (value.byteLength !== size)
    throw new RangeError(`LUKS header: ${value.byteLength} != ${size}`);
  target.set(value, at);
}
