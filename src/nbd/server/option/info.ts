// SPDX-License-Identifier: MIT
/** NBD_OPT_INFO and NBD_OPT_GO. @see proto.md for both */
import {
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_INFO,
} from '../../../../protocol/nbd/constants.js';
import {
  NBD_INFO_BLOCK_SIZE_PAYLOAD,
  NBD_INFO_EXPORT_PAYLOAD,
  NBD_SHORT,
} from '../../../../protocol/nbd/handshake.js';
import type { NbdExport } from '../export.js';
import type { Negotiation } from '../negotiate.js';
import { blockSizes, transmissionFlags } from '../session.js';
import { OptionReader } from './text.js';

interface InfoRequest {
  readonly name: string;
  readonly types: ReadonlySet<number>;
}

export function answerInfo(phase: Negotiation, data: Buffer): void {
  describe(phase, data);
}

export function answerGo(phase: Negotiation, data: Buffer): void {
  const described = describe(phase, data);
  if (described === undefined) return;
  const { exported, request } = described;
  // Who asked for the sizes keeps to them; the node pads for everybody else.
  const agreed = request.types.has(NBD_INFO_BLOCK_SIZE);
  phase.enter(exported, { minimumBlock: agreed ? blockSizes(exported).minimum : 1 });
}

/** Sends all information and the ACK. Returns undefined after an error reply. */
function describe(
  phase: Negotiation,
  data: Buffer,
): { exported: NbdExport; request: InfoRequest } | undefined {
  const request = parse(data);
  if (request === undefined) {
    phase.refuse(NBD_REP_ERR_INVALID, 'malformed information request');
    return undefined;
  }
  const exported = phase.exports.find(request.name);
  if (exported === undefined) {
    phase.refuse(NBD_REP_ERR_UNKNOWN, `export '${request.name}' not present`);
    return undefined;
  }
  sendText(phase, request, { type: NBD_INFO_NAME, text: exported.name });
  if (exported.description !== '') {
    sendText(phase, request, { type: NBD_INFO_DESCRIPTION, text: exported.description });
  }
  sendBlockSizes(phase, request, exported);
  phase.reply(
    NBD_REP_INFO,
    NBD_INFO_EXPORT_PAYLOAD.toBytes({
      type: NBD_INFO_EXPORT,
      size: BigInt(exported.backend.size),
      transmissionFlags: transmissionFlags(exported, phase.form),
    }),
  );
  phase.reply(NBD_REP_ACK);
  return { exported, request };
}

function parse(data: Buffer): InfoRequest | undefined {
  const reader = new OptionReader(data);
  const name = reader.text();
  const count = reader.u16();
  if (name === undefined || count === undefined || reader.left !== count * 2) return undefined;
  const types = new Set<number>();
  for (let index = 0; index < count; index++) types.add(reader.u16() ?? 0);
  return { name, types };
}

function sendText(
  phase: Negotiation,
  request: InfoRequest,
  info: { type: number; text: string },
): void {
  if (!request.types.has(info.type)) return;
  const type = NBD_SHORT.toBytes({ value: info.type });
  phase.reply(NBD_REP_INFO, Buffer.concat([type, Buffer.from(info.text)]));
}

/** Sent unasked as well; then without the alignment, to which only who asks is held. */
function sendBlockSizes(phase: Negotiation, request: InfoRequest, exported: NbdExport): void {
  const sizes = blockSizes(exported);
  const minimum = request.types.has(NBD_INFO_BLOCK_SIZE) ? sizes.minimum : 1;
  phase.reply(
    NBD_REP_INFO,
    NBD_INFO_BLOCK_SIZE_PAYLOAD.toBytes({ type: NBD_INFO_BLOCK_SIZE, ...sizes, minimum }),
  );
}
