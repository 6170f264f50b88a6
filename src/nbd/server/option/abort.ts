// SPDX-License-Identifier: MIT
import { NBD_REP_ACK } from '../../../../protocol/nbd/constants.js';
import type { Negotiation } from '../negotiate.js';

/** Acknowledges, whatever data came with it, and closes. @see proto.md NBD_OPT_ABORT */
export function answerAbort(phase: Negotiation): void {
  phase.reply(NBD_REP_ACK);
  phase.finish();
}
