// SPDX-License-Identifier: MIT
import {
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_SERVER,
} from '../../../../protocol/nbd/constants.js';
import { NBD_COUNT } from '../../../../protocol/nbd/handshake.js';
import type { Negotiation } from '../negotiate.js';

/** All exports with their descriptions. @see proto.md NBD_OPT_LIST */
export function answerList(phase: Negotiation, data: Buffer): void {
  if (data.byteLength > 0) {
    phase.refuse(NBD_REP_ERR_INVALID, 'NBD_OPT_LIST takes no data');
    return;
  }
  for (const { name, description } of phase.exports.offered()) {
    const text = Buffer.from(name);
    const length = NBD_COUNT.toBytes({ value: text.byteLength });
    phase.reply(NBD_REP_SERVER, Buffer.concat([length, text, Buffer.from(description)]));
  }
  phase.reply(NBD_REP_ACK);
}
