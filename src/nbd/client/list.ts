// SPDX-License-Identifier: MIT
/** Questions to a server that don't lead into the transmission phase. */
import {
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
} from '../../../protocol/nbd/constants.js';
import { NBD_COUNT } from '../../../protocol/nbd/handshake.js';
import { BlockError } from '../../base/errors.js';
import { NBD_STRING_MAX } from '../../base/limits.js';
import { atLeast, contextQuery, greet, isAck, isGranted, unexpectedReply } from './negotiate.js';
import { isErrorReply, type OptionStream, optionError, protocolError } from './option-stream.js';

export interface NbdListedExport {
  readonly name: string;
  readonly description: string;
}

/**
 * Asks which exports there are, then leaves. @see proto.md NBD_OPT_LIST
 * @throws BlockError DF_NOT_SUPPORTED or DF_ACCESS where the server doesn't tell
 */
export async function listExports(stream: OptionStream): Promise<NbdListedExport[]> {
  const { fixed } = await greet(stream);
  if (!fixed) {
    throw new BlockError('DF_NOT_SUPPORTED', 'Server does not support export lists');
  }
  const exports: NbdListedExport[] = [];
  const last = await stream.ask(
    NBD_OPT_LIST,
    Buffer.alloc(0),
    (reply) => {
      if (reply.type !== NBD_REP_SERVER) throw unexpectedReply(NBD_OPT_LIST, reply.type);
      const { value: length } = NBD_COUNT.decode(atLeast(reply.payload, 4, 'NBD_REP_SERVER'));
      if (length > NBD_STRING_MAX || length > reply.payload.byteLength - 4) {
        throw protocolError("incorrect name length in server's list response");
      }
      const name = reply.payload.toString('utf8', 4, 4 + length);
      exports.push({ name, description: reply.payload.toString('utf8', 4 + length) });
    },
    isAck,
  );
  stream.abort();
  if (isErrorReply(last.type)) throw optionError(NBD_OPT_LIST, last);
  return exports;
}

/** Asks which meta contexts an export has, then leaves. @see proto.md NBD_OPT_LIST_META_CONTEXT */
export async function listMetaContexts(
  stream: OptionStream,
  exportName: string,
): Promise<string[]> {
  const { fixed } = await greet(stream);
  if (!fixed || !(await isGranted(stream, NBD_OPT_STRUCTURED_REPLY))) {
    stream.abort();
    throw new BlockError('DF_NOT_SUPPORTED', 'Server does not support meta contexts');
  }
  const names: string[] = [];
  const option = NBD_OPT_LIST_META_CONTEXT;
  const last = await stream.ask(
    option,
    contextQuery(exportName, []),
    (reply) => {
      if (reply.type !== NBD_REP_META_CONTEXT) throw unexpectedReply(option, reply.type);
      names.push(atLeast(reply.payload, 5, 'NBD_REP_META_CONTEXT').toString('utf8', 4));
    },
    isAck,
  );
  stream.abort();
  if (isErrorReply(last.type)) throw optionError(option, last);
  return names;
}
