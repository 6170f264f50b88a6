// SPDX-License-Identifier: MIT
/** Structs of the option phase; text payloads are cut and joined by who sends them. */
import { Struct } from '../layout.js';

/** Server's first message. @see proto.md "Newstyle negotiation" */
export const NBD_GREETING = new Struct('nbd_greeting', 18, {
  magic: 'u64', // NBD_MAGIC
  optsMagic: 'u64', // NBD_OPTS_MAGIC
  handshakeFlags: 'u16', // NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES
});

/** Client's answer to the greeting. @see proto.md "Client flags" */
export const NBD_CLIENT_FLAGS = new Struct('nbd_client_flags', 4, {
  flags: 'u32', // NBD_FLAG_C_*
});

/** Client option; `length` data bytes follow. @see proto.md "Newstyle negotiation" */
export const NBD_OPTION = new Struct('nbd_option', 16, {
  magic: 'u64', // NBD_OPTS_MAGIC
  option: 'u32', // NBD_OPT_*
  length: 'u32', // bytes
});

/** Server's answer to an option; `length` data bytes follow. @see proto.md "Fixed newstyle negotiation" */
export const NBD_OPTION_REPLY = new Struct('nbd_option_reply', 20, {
  magic: 'u64', // NBD_REP_MAGIC
  option: 'u32', // the option that is answered
  type: 'u32', // NBD_REP_*
  length: 'u32', // bytes
});

/** Server's answer to NBD_OPT_EXPORT_NAME, followed by 124 zero bytes unless NO_ZEROES is agreed. */
export const NBD_EXPORT_NAME_REPLY = new Struct('nbd_export_name_reply', 10, {
  size: 'u64', // bytes
  transmissionFlags: 'u16', // NBD_FLAG_*
});
/** Bytes of padding after NBD_EXPORT_NAME_REPLY. */
export const NBD_EXPORT_NAME_PADDING = 124;

/** NBD_REP_INFO payload of type NBD_INFO_EXPORT. */
export const NBD_INFO_EXPORT_PAYLOAD = new Struct('nbd_info_export', 12, {
  type: 'u16', // NBD_INFO_EXPORT
  size: 'u64', // bytes
  transmissionFlags: 'u16', // NBD_FLAG_*
});

/** NBD_REP_INFO payload of type NBD_INFO_BLOCK_SIZE. */
export const NBD_INFO_BLOCK_SIZE_PAYLOAD = new Struct('nbd_info_block_size', 14, {
  type: 'u16', // NBD_INFO_BLOCK_SIZE
  minimum: 'u32', // bytes
  preferred: 'u32', // bytes
  maximum: 'u32', // bytes
});

/** A 32-bit count or length in front of strings and lists. */
export const NBD_COUNT = new Struct('nbd_count', 4, { value: 'u32' });
/** A 16-bit count or information type. */
export const NBD_SHORT = new Struct('nbd_short', 2, { value: 'u16' });
