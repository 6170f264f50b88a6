// SPDX-License-Identifier: MIT
import { NBD_REP_ACK, NBD_REP_ERR_INVALID } from '../../../../protocol/nbd/constants.js';
import type { Negotiation } from '../negotiate.js';
import { REPLY_EXTENDED } from '../session.js';

/** Implies structured replies. @see extension-ext-header, NBD_OPT_EXTENDED_HEADERS */
export function answerExtendedHeaders(phase: Negotiation, data: Buffer): void {
  if (data.byteLength > 0) {
    phase.refuse(NBD_REP_ERR_INVALID, 'NBD_OPT_EXTENDED_HEADERS takes no data');
  } else if (phase.form === REPLY_EXTENDED) {
    phase.refuse(NBD_REP_ERR_INVALID, 'extended headers are already negotiated');
  } else {
    phase.form = REPLY_EXTENDED;
    phase.reply(NBD_REP_ACK);
  }
}
