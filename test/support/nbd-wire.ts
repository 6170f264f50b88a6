// SPDX-License-Identifier: MIT
/**
 * Constants and layouts of NBD, for tests that work on its bytes. Written from the specification
 * alone: they share no code, and so no bug, with the program.
 */
export const NBDMAGIC = 0x4e42444d41474943n;
export const IHAVEOPT = 0x49484156454f5054n;
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** Set in the type of every option reply that is an error. */
export const ERROR_BIT = 0x8000_0000;
export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: ERROR_BIT + 1,
  ERR_POLICY: ERROR_BIT + 2,
  ERR_INVALID: ERROR_BIT + 3,
  ERR_PLATFORM: ERROR_BIT + 4,
  ERR_TLS_REQD: ERROR_BIT + 5,
  ERR_UNKNOWN: ERROR_BIT + 6,
  ERR_SHUTDOWN: ERROR_BIT + 7,
  ERR_BLOCK_SIZE_REQD: ERROR_BIT + 8,
  ERR_TOO_BIG: ERROR_BIT + 9,
  ERR_EXT_HEADER_REQD: ERROR_BIT + 10,
} as const;

export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;

export const CMD_FLAG = {
  FUA: 1,
  NO_HOLE: 2,
  DF: 4,
  REQ_ONE: 8,
  FAST_ZERO: 16,
  PAYLOAD_LEN: 32,
} as const;

/** Transmission flags. */
export const FLAG = {
  HAS_FLAGS: 1,
  READ_ONLY: 2,
  SEND_FLUSH: 4,
  SEND_FUA: 8,
  ROTATIONAL: 16,
  SEND_TRIM: 32,
  SEND_WRITE_ZEROES: 64,
  SEND_DF: 128,
  CAN_MULTI_CONN: 256,
  SEND_RESIZE: 512,
  SEND_CACHE: 1024,
  SEND_FAST_ZERO: 2048,
  BLOCK_STATUS_PAYLOAD: 4096,
} as const;

export const ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

export type Address = string | { readonly host: string; readonly port: number };

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

export interface Request {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: bigint;
  readonly offset?: number | bigint;
  readonly length?: number | bigint;
  readonly data?: Uint8Array;
  readonly magic?: number;
}

/** One reply message, whichever of the three forms it has. */
export interface Reply {
  readonly form: 'simple' | 'structured' | 'extended';
  readonly cookie: bigint;
  /** Of a simple reply, or of an error chunk; 0 for success. */
  readonly error: number;
  /** Chunk type; `CHUNK.NONE` for a simple reply. */
  readonly type: number;
  /** Reply flags of a chunk; 1, which is DONE, for a simple reply. */
  readonly flags: number;
  /** Only in an extended reply. */
  readonly offset: bigint | undefined;
  readonly payload: Buffer;
}

export const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
};
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};
/** A string with its length in front, as names and queries are sent. */
export const counted = (text: string): Buffer => {
  const bytes = Buffer.from(text);
  return Buffer.concat([u32(bytes.length), bytes]);
};

/** The bytes of an option request. */
export function encodeOption(option: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(IHAVEOPT), u32(option), u32(data.length), data]);
}

/** The data of INFO and GO. */
export function encodeInfoRequest(name: string, infos: readonly number[] = []): Buffer {
  return Buffer.concat([counted(name), u16(infos.length), ...infos.map(u16)]);
}

/** The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function encodeMetaQuery(name: string, queries: readonly string[]): Buffer {
  return Buffer.concat([counted(name), u32(queries.length), ...queries.map(counted)]);
}

/** The 28 bytes of a compact request, and its payload. The length is that of the data if absent. */
export function encodeRequest(request: Request): Buffer {
  const data = request.data ?? Buffer.alloc(0);
  return Buffer.concat([
    u32(request.magic ?? REQUEST_MAGIC),
    u16(request.flags ?? 0),
    u16(request.type),
    u64(request.cookie ?? 0n),
    u64(request.offset ?? 0),
    u32(Number(request.length ?? data.length)),
    data,
  ]);
}

/** The 32 bytes of an extended request, and its payload; PAYLOAD_LEN is not set by itself. */
export function encodeExtendedRequest(request: Request): Buffer {
  const data = request.data ?? Buffer.alloc(0);
  return Buffer.concat([
    u32(request.magic ?? EXTENDED_REQUEST_MAGIC),
    u16(request.flags ?? 0),
    u16(request.type),
    u64(request.cookie ?? 0n),
    u64(request.offset ?? 0),
    u64(request.length ?? data.length),
    data,
  ]);
}

export interface ExportInfo {
  readonly size: bigint;
  readonly flags: number;
  /** Payload behind the type of each information. */
  readonly infos: ReadonlyMap<number, Buffer>;
}

/** What the INFO replies say. */
export function exportInfo(replies: readonly OptionReply[]): ExportInfo {
  const infos = new Map(
    replies
      .filter(({ type }) => type === REP.INFO)
      .map(({ data }) => [data.readUInt16BE(0), data.subarray(2)] as const),
  );
  const main = infos.get(INFO.EXPORT);
  if (main === undefined) throw new Error('no INFO_EXPORT among the replies');
  return { size: main.readBigUInt64BE(0), flags: main.readUInt16BE(8), infos };
}

/** ID and name of each context that the replies list. */
export function contextsOf(replies: readonly OptionReply[]): [number, string][] {
  return replies
    .filter(({ type }) => type === REP.META_CONTEXT)
    .map(({ data }) => [data.readUInt32BE(0), data.subarray(4).toString()]);
}

/** The block size information: minimum, preferred, maximum payload; bytes. */
export function blockSizes(info: ExportInfo): [number, number, number] | undefined {
  const bytes = info.infos.get(INFO.BLOCK_SIZE);
  return bytes && [bytes.readUInt32BE(0), bytes.readUInt32BE(4), bytes.readUInt32BE(8)];
}

export interface Descriptor {
  readonly length: number;
  readonly status: number;
}

/** Context ID and descriptors of a status chunk of either width. */
export function statusOf(reply: Reply): { context: number; descriptors: Descriptor[] } {
  const { payload, type } = reply;
  const wide = type === CHUNK.BLOCK_STATUS_EXT;
  if (!wide && type !== CHUNK.BLOCK_STATUS) throw new Error(`chunk type ${type} is no status`);
  const descriptors: Descriptor[] = [];
  const [begin, step] = wide ? [8, 16] : [4, 8];
  for (let at = begin; at < payload.length; at += step) {
    const length = wide ? Number(payload.readBigUInt64BE(at)) : payload.readUInt32BE(at);
    descriptors.push({ length, status: payload.readUInt32BE(at + (wide ? 12 : 4)) });
  }
  return { context: payload.readUInt32BE(0), descriptors };
}

/** The data that the content chunks of a READ's answer describe. */
export function contentOf(replies: readonly Reply[], offset: number, length: number): Buffer {
  const content = Buffer.alloc(length, 0xee);
  for (const { type, payload } of replies) {
    if (type === CHUNK.OFFSET_DATA) {
      payload.subarray(8).copy(content, Number(payload.readBigUInt64BE(0)) - offset);
    } else if (type === CHUNK.OFFSET_HOLE) {
      const at = Number(payload.readBigUInt64BE(0)) - offset;
      content.fill(0, at, at + payload.readUInt32BE(8));
    }
  }
  return content;
}
