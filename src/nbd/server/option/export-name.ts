// SPDX-License-Identifier: MIT
import {
  NBD_EXPORT_NAME_PADDING,
  NBD_EXPORT_NAME_REPLY,
} from '../../../../protocol/nbd/handshake.js';
import type { Negotiation } from '../negotiate.js';
import { transmissionFlags } from '../session.js';
import { textOf } from './text.js';

/** The oldest way in; knows no errors, so whatever is wrong ends the connection. */
export function answerExportName(phase: Negotiation, data: Buffer): void {
  const name = textOf(data);
  const exported = name === undefined ? undefined : phase.exports.find(name);
  if (exported === undefined) {
    phase.drop('NBD_OPT_EXPORT_NAME with a name that is not exported');
    return;
  }
  phase.send(
    NBD_EXPORT_NAME_REPLY.toBytes({
      size: BigInt(exported.backend.size),
      transmissionFlags: transmissionFlags(exported, phase.form),
    }),
  );
  if (!phase.noZeroes) phase.send(new Uint8Array(NBD_EXPORT_NAME_PADDING));
  // This client could not learn of block sizes; the node pads what is not aligned.
  phase.enter(exported, { minimumBlock: 1 });
}
