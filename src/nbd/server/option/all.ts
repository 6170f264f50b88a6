// SPDX-License-Identifier: MIT
/** Each option that the server knows, with the function that answers it. */
import {
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
} from '../../../../protocol/nbd/constants.js';
import type { Negotiation } from '../negotiate.js';
import { answerAbort } from './abort.js';
import { answerExportName } from './export-name.js';
import { answerExtendedHeaders } from './extended-headers.js';
import { answerGo, answerInfo } from './info.js';
import { answerList } from './list.js';
import { answerListMetaContext, answerSetMetaContext } from './meta-context.js';
import { answerStartTls } from './starttls.js';
import { answerStructuredReply } from './structured-reply.js';

/** `data` is valid during the call only. */
export type OptionHandler = (phase: Negotiation, data: Buffer) => void;

export const OPTION_HANDLERS: ReadonlyMap<number, OptionHandler> = new Map([
  [NBD_OPT_EXPORT_NAME, answerExportName],
  [NBD_OPT_ABORT, answerAbort],
  [NBD_OPT_LIST, answerList],
  [NBD_OPT_STARTTLS, answerStartTls],
  [NBD_OPT_INFO, answerInfo],
  [NBD_OPT_GO, answerGo],
  [NBD_OPT_STRUCTURED_REPLY, answerStructuredReply],
  [NBD_OPT_LIST_META_CONTEXT, answerListMetaContext],
  [NBD_OPT_SET_META_CONTEXT, answerSetMetaContext],
  [NBD_OPT_EXTENDED_HEADERS, answerExtendedHeaders],
]);
