// SPDX-License-Identifier: MIT
/**
 * Every number of the NBD protocol, in the order of proto.md, with the experimental EXTENDED_HEADERS
 * extension (branch extension-ext-header). Names for logs come from these tables.
 */
import { flagNamesOf, namesOf } from '../bit-fields.js';

// "Newstyle negotiation"
/** "NBDMAGIC", first eight bytes of every server. */
export const NBD_MAGIC = 0x4e42444d41474943n;
/** "IHAVEOPT", newstyle: the server's second eight bytes, and the start of each option. */
export const NBD_OPTS_MAGIC = 0x49484156454f5054n;
/** Second eight bytes of an oldstyle server, which has no option phase. */
export const NBD_OLDSTYLE_MAGIC = 0x00420281861253n;
export const NBD_REP_MAGIC = 0x0003e889045565a9n;

// "Transmission"
export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** "Handshake flags", server to client. */
export const HANDSHAKE_FLAGS = {
  NBD_FLAG_FIXED_NEWSTYLE: 1 << 0,
  NBD_FLAG_NO_ZEROES: 1 << 1,
} as const;
export const { NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES } = HANDSHAKE_FLAGS;

/** "Client flags". */
export const CLIENT_FLAGS = {
  NBD_FLAG_C_FIXED_NEWSTYLE: 1 << 0,
  NBD_FLAG_C_NO_ZEROES: 1 << 1,
} as const;
export const { NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES } = CLIENT_FLAGS;

/** "Transmission flags". */
export const TRANSMISSION_FLAGS = {
  NBD_FLAG_HAS_FLAGS: 1 << 0,
  NBD_FLAG_READ_ONLY: 1 << 1,
  NBD_FLAG_SEND_FLUSH: 1 << 2,
  NBD_FLAG_SEND_FUA: 1 << 3,
  NBD_FLAG_ROTATIONAL: 1 << 4,
  NBD_FLAG_SEND_TRIM: 1 << 5,
  NBD_FLAG_SEND_WRITE_ZEROES: 1 << 6,
  NBD_FLAG_SEND_DF: 1 << 7,
  NBD_FLAG_CAN_MULTI_CONN: 1 << 8,
  NBD_FLAG_SEND_RESIZE: 1 << 9,
  NBD_FLAG_SEND_CACHE: 1 << 10,
  NBD_FLAG_SEND_FAST_ZERO: 1 << 11,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;
export const {
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_SEND_RESIZE,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
} = TRANSMISSION_FLAGS;

/** "Option types". */
export const OPTIONS = {
  NBD_OPT_EXPORT_NAME: 1,
  NBD_OPT_ABORT: 2,
  NBD_OPT_LIST: 3,
  NBD_OPT_PEEK_EXPORT: 4,
  NBD_OPT_STARTTLS: 5,
  NBD_OPT_INFO: 6,
  NBD_OPT_GO: 7,
  NBD_OPT_STRUCTURED_REPLY: 8,
  NBD_OPT_LIST_META_CONTEXT: 9,
  NBD_OPT_SET_META_CONTEXT: 10,
  NBD_OPT_EXTENDED_HEADERS: 11,
} as const;
export const {
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_LIST,
  NBD_OPT_PEEK_EXPORT,
  NBD_OPT_STARTTLS,
  NBD_OPT_INFO,
  NBD_OPT_GO,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_EXTENDED_HEADERS,
} = OPTIONS;

/** Set in every option reply type that is an error. */
export const NBD_REP_FLAG_ERROR = 0x8000_0000;

/** "Option reply types". */
export const OPTION_REPLIES = {
  NBD_REP_ACK: 1,
  NBD_REP_SERVER: 2,
  NBD_REP_INFO: 3,
  NBD_REP_META_CONTEXT: 4,
  NBD_REP_ERR_UNSUP: NBD_REP_FLAG_ERROR + 1,
  NBD_REP_ERR_POLICY: NBD_REP_FLAG_ERROR + 2,
  NBD_REP_ERR_INVALID: NBD_REP_FLAG_ERROR + 3,
  NBD_REP_ERR_PLATFORM: NBD_REP_FLAG_ERROR + 4,
  NBD_REP_ERR_TLS_REQD: NBD_REP_FLAG_ERROR + 5,
  NBD_REP_ERR_UNKNOWN: NBD_REP_FLAG_ERROR + 6,
  NBD_REP_ERR_SHUTDOWN: NBD_REP_FLAG_ERROR + 7,
  NBD_REP_ERR_BLOCK_SIZE_REQD: NBD_REP_FLAG_ERROR + 8,
  NBD_REP_ERR_TOO_BIG: NBD_REP_FLAG_ERROR + 9,
  NBD_REP_ERR_EXT_HEADER_REQD: NBD_REP_FLAG_ERROR + 10,
} as const;
export const {
  NBD_REP_ACK,
  NBD_REP_SERVER,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_ERR_UNSUP,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_PLATFORM,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_EXT_HEADER_REQD,
} = OPTION_REPLIES;

/** Information types of NBD_REP_INFO. */
export const INFO_TYPES = {
  NBD_INFO_EXPORT: 0,
  NBD_INFO_NAME: 1,
  NBD_INFO_DESCRIPTION: 2,
  NBD_INFO_BLOCK_SIZE: 3,
} as const;
export const { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE } =
  INFO_TYPES;

/** "Command flags". */
export const COMMAND_FLAGS = {
  NBD_CMD_FLAG_FUA: 1 << 0,
  NBD_CMD_FLAG_NO_HOLE: 1 << 1,
  NBD_CMD_FLAG_DF: 1 << 2,
  NBD_CMD_FLAG_REQ_ONE: 1 << 3,
  NBD_CMD_FLAG_FAST_ZERO: 1 << 4,
  NBD_CMD_FLAG_PAYLOAD_LEN: 1 << 5,
} as const;
export const {
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_PAYLOAD_LEN,
} = COMMAND_FLAGS;

/** "Structured reply flags". */
export const NBD_REPLY_FLAG_DONE = 1;

/** "Structured reply types". */
export const REPLY_TYPES = {
  NBD_REPLY_TYPE_NONE: 0,
  NBD_REPLY_TYPE_OFFSET_DATA: 1,
  NBD_REPLY_TYPE_OFFSET_HOLE: 2,
  NBD_REPLY_TYPE_BLOCK_STATUS: 5,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT: 6,
  NBD_REPLY_TYPE_ERROR: 0x8001,
  NBD_REPLY_TYPE_ERROR_OFFSET: 0x8002,
} as const;
export const {
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
} = REPLY_TYPES;
/** Set in every chunk type that is an error. */
export const NBD_REPLY_TYPE_FLAG_ERROR = 0x8000;

/** "Request types". */
export const COMMANDS = {
  NBD_CMD_READ: 0,
  NBD_CMD_WRITE: 1,
  NBD_CMD_DISC: 2,
  NBD_CMD_FLUSH: 3,
  NBD_CMD_TRIM: 4,
  NBD_CMD_CACHE: 5,
  NBD_CMD_WRITE_ZEROES: 6,
  NBD_CMD_BLOCK_STATUS: 7,
  NBD_CMD_RESIZE: 8,
} as const;
export const {
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_TRIM,
  NBD_CMD_CACHE,
  NBD_CMD_WRITE_ZEROES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_RESIZE,
} = COMMANDS;

/** "Error values". */
export const NBD_ERRORS = {
  NBD_EPERM: 1,
  NBD_EIO: 5,
  NBD_ENOMEM: 12,
  NBD_EINVAL: 22,
  NBD_ENOSPC: 28,
  NBD_EOVERFLOW: 75,
  NBD_ENOTSUP: 95,
  NBD_ESHUTDOWN: 108,
} as const;
export const {
  NBD_EPERM,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_ENOTSUP,
  NBD_ESHUTDOWN,
} = NBD_ERRORS;

/** "`base:allocation` metadata context". */
export const NBD_STATE_HOLE = 1 << 0;
export const NBD_STATE_ZERO = 1 << 1;
/** QEMU's `qemu:dirty-bitmap:NAME`: the extent is dirty. */
export const NBD_STATE_DIRTY = 1 << 0;

export const NBD_META_BASE_ALLOCATION = 'base:allocation';
export const NBD_META_QEMU_ALLOCATION_DEPTH = 'qemu:allocation-depth';
/** Followed by the bitmap's name. */
export const NBD_META_QEMU_DIRTY_BITMAP = 'qemu:dirty-bitmap:';

/** TCP port by IANA. */
export const NBD_DEFAULT_PORT = 10809;
/** "Size constraints": what holds where none was negotiated, bytes. */
export const NBD_DEFAULT_BLOCK_SIZES = { minimum: 1, preferred: 4096, maximum: 1 << 25 } as const;

export const handshakeFlagNames = flagNamesOf(HANDSHAKE_FLAGS);
export const transmissionFlagNames = flagNamesOf(TRANSMISSION_FLAGS);
export const commandFlagNames = flagNamesOf(COMMAND_FLAGS);
export const optionName = namesOf(OPTIONS, 'NBD_OPT_');
export const optionReplyName = namesOf(OPTION_REPLIES, 'NBD_REP_');
export const infoTypeName = namesOf(INFO_TYPES, 'NBD_INFO_');
export const replyTypeName = namesOf(REPLY_TYPES, 'NBD_REPLY_TYPE_');
export const commandName = namesOf(COMMANDS, 'NBD_CMD_');
export const nbdErrorName = namesOf(NBD_ERRORS, 'NBD_E');
