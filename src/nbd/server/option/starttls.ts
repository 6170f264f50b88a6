// SPDX-License-Identifier: MIT
import { NBD_REP_ERR_INVALID, NBD_REP_ERR_POLICY } from '../../../../protocol/nbd/constants.js';
import type { Negotiation } from '../negotiate.js';

/** The server runs without TLS. @see proto.md "NOTLS mode" */
export function answerStartTls(phase: Negotiation, data: Buffer): void {
  if (data.byteLength > 0) phase.refuse(NBD_REP_ERR_INVALID, 'NBD_OPT_STARTTLS takes no data');
  else phase.refuse(NBD_REP_ERR_POLICY, 'TLS is not configured');
}
