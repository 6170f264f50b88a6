// SPDX-License-Identifier: MIT
import {
  NBD_REP_ACK,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
} from '../../../../protocol/nbd/constants.js';
import type { Negotiation } from '../negotiate.js';
import { REPLY_EXTENDED, REPLY_STRUCTURED } from '../session.js';

/** @see proto.md NBD_OPT_STRUCTURED_REPLY */
export function answerStructuredReply(phase: Negotiation, data: Buffer): void {
  if (data.byteLength > 0) {
    phase.refuse(NBD_REP_ERR_INVALID, 'NBD_OPT_STRUCTURED_REPLY takes no data');
  } else if (phase.form === REPLY_EXTENDED) {
    phase.refuse(NBD_REP_ERR_EXT_HEADER_REQD, 'extended headers are already negotiated');
  } else if (phase.form === REPLY_STRUCTURED) {
    phase.refuse(NBD_REP_ERR_INVALID, 'structured replies are already negotiated');
  } else {
    phase.form = REPLY_STRUCTURED;
    phase.reply(NBD_REP_ACK);
  }
}
