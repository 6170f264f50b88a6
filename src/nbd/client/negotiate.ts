// SPDX-License-Identifier: MIT
/**
 * The option phase, client side: from the greeting to the transmission phase of one export, with as
 * much as the server knows, down to a bare NBD_OPT_EXPORT_NAME. @see proto.md "Handshake phase"
 */
import {
  NBD_DEFAULT_BLOCK_SIZES,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_MAGIC,
  NBD_OLDSTYLE_MAGIC,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTS_MAGIC,
  NBD_REP_ACK,
  NBD_REP_ERR_PLATFORM,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  optionName,
  optionReplyName,
} from '../../../protocol/nbd/constants.js';
import {
  NBD_CLIENT_FLAGS,
  NBD_COUNT,
  NBD_EXPORT_NAME_PADDING,
  NBD_EXPORT_NAME_REPLY,
  NBD_GREETING,
  NBD_INFO_BLOCK_SIZE_PAYLOAD,
  NBD_INFO_EXPORT_PAYLOAD,
  NBD_SHORT,
} from '../../../protocol/nbd/handshake.js';
import { isPowerOfTwo } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { NODE_SIZE_MAX } from '../../base/limits.js';
import { isErrorReply, type OptionStream, optionError, protocolError } from './option-stream.js';

/** Bytes. @see proto.md "Size constraints" */
export interface NbdBlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  /** Longest payload of one request. */
  readonly maximum: number;
  /** False: the server said nothing, these are the protocol's defaults. */
  readonly advertised: boolean;
}

/** What was agreed on with the server. */
export interface NbdSession {
  /** Bytes. */
  readonly size: number;
  /** NBD_FLAG_*. */
  readonly transmissionFlags: number;
  readonly blockSizes: NbdBlockSizes;
  /** Form of the replies. */
  readonly replies: 'simple' | 'structured' | 'extended';
  /** Meta contexts that can be asked for, and the ids by which this connection knows them. */
  readonly contexts: ReadonlyMap<string, number>;
  readonly description: string;
  /** Shortest time from an option to its answer, milliseconds; undefined: none was answered. */
  readonly roundTripMs?: number | undefined;
}

export interface NegotiateOptions {
  readonly exportName: string;
  /** Wanted meta contexts; those that the server doesn't have are left out. */
  readonly metaContexts: readonly string[];
}

/** Takes the greeting and answers it. TLS would be started next, before any other option. */
export async function greet(stream: OptionStream): Promise<{ fixed: boolean; noZeroes: boolean }> {
  const greeting = NBD_GREETING.decode(await stream.read(NBD_GREETING.size));
  if (greeting.magic !== NBD_MAGIC) {
    throw protocolError(`Bad initial magic received: 0x${greeting.magic.toString(16)}`);
  }
  if (greeting.optsMagic === NBD_OLDSTYLE_MAGIC) {
    throw new BlockError(
      'DF_NOT_SUPPORTED',
      'the server speaks oldstyle NBD, which has no negotiation; it has to offer newstyle',
    );
  }
  if (greeting.optsMagic !== NBD_OPTS_MAGIC) {
    throw protocolError(`Bad server magic received: 0x${greeting.optsMagic.toString(16)}`);
  }
  const fixed = (greeting.handshakeFlags & NBD_FLAG_FIXED_NEWSTYLE) !== 0;
  const noZeroes = (greeting.handshakeFlags & NBD_FLAG_NO_ZEROES) !== 0;
  const flags = (fixed ? NBD_FLAG_C_FIXED_NEWSTYLE : 0) | (noZeroes ? NBD_FLAG_C_NO_ZEROES : 0);
  stream.send(NBD_CLIENT_FLAGS.toBytes({ flags }));
  return { fixed, noZeroes };
}

/**
 * Brings a fresh connection into the transmission phase.
 * @throws BlockError DF_NOT_FOUND: no such export; DF_PROTOCOL: the server breaks the rules;
 *   DF_DISCONNECTED: the connection ended
 */
export async function negotiate(
  stream: OptionStream,
  options: NegotiateOptions,
): Promise<NbdSession> {
  const { fixed, noZeroes } = await greet(stream);
  const session = fixed
    ? await negotiateFixed(stream, options, noZeroes)
    : await exportNameSession(stream, options.exportName, noZeroes);
  if (stream.unread > 0) throw protocolError('the server talks without being asked');
  return { ...session, roundTripMs: stream.roundTripMs };
}

async function negotiateFixed(
  stream: OptionStream,
  options: NegotiateOptions,
  noZeroes: boolean,
): Promise<NbdSession> {
  const { exportName } = options;
  const replies = await agreeOnReplies(stream);
  const contexts =
    replies === 'simple' || options.metaContexts.length === 0
      ? new Map<string, number>()
      : await setMetaContexts(stream, options);
  const info = await go(stream, exportName);
  if (info === 'unsupported') {
    const session = await exportNameSession(stream, exportName, noZeroes);
    return { ...session, replies, contexts };
  }
  return { ...info, replies, contexts };
}

async function agreeOnReplies(stream: OptionStream): Promise<NbdSession['replies']> {
  if (await isGranted(stream, NBD_OPT_EXTENDED_HEADERS)) return 'extended';
  if (await isGranted(stream, NBD_OPT_STRUCTURED_REPLY)) return 'structured';
  return 'simple';
}

export async function isGranted(stream: OptionStream, option: number): Promise<boolean> {
  const reply = await stream.ask(option, Buffer.alloc(0), unexpected(option), isAck);
  if (isErrorReply(reply.type)) return false;
  if (reply.payload.byteLength > 0) throw protocolError('Unexpected length to ACK response');
  return true;
}

/** @see proto.md NBD_OPT_SET_META_CONTEXT */
async function setMetaContexts(
  stream: OptionStream,
  options: NegotiateOptions,
): Promise<Map<string, number>> {
  const option = NBD_OPT_SET_META_CONTEXT;
  const contexts = new Map<string, number>();
  const payload = contextQuery(options.exportName, options.metaContexts);
  const last = await stream.ask(
    option,
    payload,
    (reply) => {
      if (reply.type !== NBD_REP_META_CONTEXT) throw unexpectedReply(option, reply.type);
      const { value: id } = NBD_COUNT.decode(atLeast(reply.payload, 5, 'NBD_REP_META_CONTEXT'));
      const name = reply.payload.subarray(4).toString('utf8');
      if (!options.metaContexts.includes(name) || contexts.has(name)) {
        throw protocolError(`the server selected meta context '${name}', which nobody asked for`);
      }
      if ([...contexts.values()].includes(id)) {
        throw protocolError(`the server gave meta context id ${id} twice`);
      }
      contexts.set(name, id);
    },
    isAck,
  );
  if (isErrorReply(last.type)) contexts.clear();
  return contexts;
}

export function contextQuery(exportName: string, queries: readonly string[]): Buffer {
  return Buffer.concat([
    ...lengthAndText(exportName),
    NBD_COUNT.toBytes({ value: queries.length }),
    ...queries.flatMap(lengthAndText),
  ]);
}

function lengthAndText(text: string): Uint8Array[] {
  const bytes = Buffer.from(text, 'utf8');
  return [NBD_COUNT.toBytes({ value: bytes.byteLength }), bytes];
}

type ExportInfo = Omit<NbdSession, 'replies' | 'contexts'>;

/** @see proto.md NBD_OPT_INFO and NBD_OPT_GO */
async function go(stream: OptionStream, exportName: string): Promise<ExportInfo | 'unsupported'> {
  const wanted = [NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION];
  const payload = Buffer.concat([
    ...lengthAndText(exportName),
    NBD_SHORT.toBytes({ value: wanted.length }),
    ...wanted.map((value) => NBD_SHORT.toBytes({ value })),
  ]);
  let exported: { size: number; transmissionFlags: number } | undefined;
  let blockSizes: NbdBlockSizes | undefined;
  let description = '';
  const last = await stream.ask(
    NBD_OPT_GO,
    payload,
    (reply) => {
      if (reply.type !== NBD_REP_INFO) throw unexpectedReply(NBD_OPT_GO, reply.type);
      const { value: type } = NBD_SHORT.decode(atLeast(reply.payload, 2, 'NBD_REP_INFO'));
      if (type === NBD_INFO_EXPORT) exported = decodeExport(reply.payload);
      else if (type === NBD_INFO_BLOCK_SIZE) blockSizes = decodeBlockSizes(reply.payload);
      else if (type === NBD_INFO_DESCRIPTION) description = reply.payload.toString('utf8', 2);
    },
    isAck,
  );
  if (last.type === NBD_REP_ERR_UNSUP || last.type === NBD_REP_ERR_PLATFORM) return 'unsupported';
  if (isErrorReply(last.type)) throw optionError(NBD_OPT_GO, last);
  if (last.payload.byteLength > 0) throw protocolError('server sent invalid NBD_REP_ACK');
  if (exported === undefined) throw protocolError('broken server omitted NBD_INFO_EXPORT');
  const sizes = blockSizes ?? defaultBlockSizes();
  if (exported.size % sizes.minimum !== 0) {
    throw protocolError(
      `export size ${exported.size} is not multiple of minimum block size ${sizes.minimum}`,
    );
  }
  return { ...exported, blockSizes: sizes, description };
}

function decodeExport(payload: Buffer): { size: number; transmissionFlags: number } {
  if (payload.byteLength !== NBD_INFO_EXPORT_PAYLOAD.size) {
    throw protocolError(`NBD_INFO_EXPORT of ${payload.byteLength} bytes is not 12`);
  }
  const { size, transmissionFlags } = NBD_INFO_EXPORT_PAYLOAD.decode(payload);
  return { size: checkedSize(size), transmissionFlags: checkedFlags(transmissionFlags) };
}

function checkedSize(size: bigint): number {
  if (size > BigInt(NODE_SIZE_MAX)) {
    throw new BlockError('DF_TOO_LARGE', `export size ${size} is above ${NODE_SIZE_MAX} bytes`);
  }
  return Number(size);
}

function checkedFlags(flags: number): number {
  if ((flags & NBD_FLAG_HAS_FLAGS) === 0) {
    throw protocolError(`transmission flags 0x${flags.toString(16)} lack NBD_FLAG_HAS_FLAGS`);
  }
  return flags;
}

function decodeBlockSizes(payload: Buffer): NbdBlockSizes {
  if (payload.byteLength !== NBD_INFO_BLOCK_SIZE_PAYLOAD.size) {
    throw protocolError(`NBD_INFO_BLOCK_SIZE of ${payload.byteLength} bytes is not 14`);
  }
  const { minimum, preferred, maximum } = NBD_INFO_BLOCK_SIZE_PAYLOAD.decode(payload);
  if (!isPowerOfTwo(minimum) || minimum > 65_536) {
    throw protocolError(`server minimum block size ${minimum} is not a power of two up to 65536`);
  }
  if (!isPowerOfTwo(preferred) || preferred < minimum) {
    throw protocolError(`server preferred block size ${preferred} is not valid`);
  }
  if (maximum < minimum) throw protocolError(`server maximum block size ${maximum} is not valid`);
  return { minimum, preferred, maximum, advertised: true };
}

function defaultBlockSizes(): NbdBlockSizes {
  return { ...NBD_DEFAULT_BLOCK_SIZES, advertised: false };
}

/** NBD_OPT_EXPORT_NAME: answered with the export, or by hanging up. */
async function exportNameSession(
  stream: OptionStream,
  exportName: string,
  noZeroes: boolean,
): Promise<NbdSession> {
  stream.sendOption(NBD_OPT_EXPORT_NAME, Buffer.from(exportName, 'utf8'));
  let bytes: Buffer;
  try {
    bytes = await stream.read(
      NBD_EXPORT_NAME_REPLY.size + (noZeroes ? 0 : NBD_EXPORT_NAME_PADDING),
    );
  } catch (cause) {
    const dropped = cause instanceof BlockError && cause.code === 'DF_DISCONNECTED';
    if (!dropped) throw cause;
    throw new BlockError(
      'DF_NOT_FOUND',
      `the server ended the connection when asked for export '${exportName}'`,
      {},
      { cause },
    );
  }
  const reply = NBD_EXPORT_NAME_REPLY.decode(bytes);
  return {
    size: checkedSize(reply.size),
    transmissionFlags: checkedFlags(reply.transmissionFlags),
    blockSizes: defaultBlockSizes(),
    replies: 'simple',
    contexts: new Map(),
    description: '',
  };
}

export function isAck(type: number): boolean {
  return type === NBD_REP_ACK;
}

function unexpected(option: number): (reply: { type: number }) => never {
  return (reply) => {
    throw unexpectedReply(option, reply.type);
  };
}

export function unexpectedReply(option: number, type: number): BlockError {
  return protocolError(
    `Unexpected reply type ${type} (${optionReplyName(type)}) to ${optionName(option)}`,
  );
}

export function atLeast(payload: Buffer, length: number, name: string): Buffer {
  if (payload.byteLength < length) {
    throw protocolError(`${name} length ${payload.byteLength} is too short`);
  }
  return payload;
}
