// SPDX-License-Identifier: MIT
/** NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. @see proto.md "Metadata querying" */
import {
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_META_CONTEXT,
} from '../../../../protocol/nbd/constants.js';
import { NBD_COUNT } from '../../../../protocol/nbd/handshake.js';
import { NBD_META_QUERIES_MAX } from '../../../base/limits.js';
import type { NbdExport } from '../export.js';
import { contextsOf, type MetaContext, selectContexts } from '../meta-contexts.js';
import type { Negotiation } from '../negotiate.js';
import { REPLY_SIMPLE } from '../session.js';
import { OptionReader } from './text.js';

interface ContextRequest {
  readonly exported: NbdExport;
  readonly queries: readonly string[];
}

export function answerListMetaContext(phase: Negotiation, data: Buffer): void {
  const request = parse(phase, data);
  if (request === undefined) return;
  const contexts = contextsOf(request.exported);
  const listed =
    request.queries.length === 0
      ? contexts
      : selectContexts(contexts, request.queries, { wildcards: true });
  // Ids are reserved in a list.
  for (const context of listed) send(phase, { ...context, id: 0 });
  phase.reply(NBD_REP_ACK);
}

export function answerSetMetaContext(phase: Negotiation, data: Buffer): void {
  // What was selected before is gone, even when this request fails.
  phase.selection = undefined;
  const request = parse(phase, data);
  if (request === undefined) return;
  const { exported, queries } = request;
  const contexts = selectContexts(contextsOf(exported), queries, { wildcards: false });
  for (const context of contexts) send(phase, context);
  phase.selection = { exported, contexts };
  phase.reply(NBD_REP_ACK);
}

function send(phase: Negotiation, context: MetaContext): void {
  const id = NBD_COUNT.toBytes({ value: context.id });
  phase.reply(NBD_REP_META_CONTEXT, Buffer.concat([id, Buffer.from(context.name)]));
}

/** Returns undefined after an error reply. */
function parse(phase: Negotiation, data: Buffer): ContextRequest | undefined {
  if (phase.form === REPLY_SIMPLE) {
    phase.refuse(NBD_REP_ERR_INVALID, 'meta contexts need structured replies');
    return undefined;
  }
  const reader = new OptionReader(data);
  const name = reader.text();
  const count = reader.u32();
  if (name === undefined || count === undefined) return malformed(phase);
  if (count > NBD_META_QUERIES_MAX) {
    const message = `${count} queries are above the limit ${NBD_META_QUERIES_MAX}`;
    phase.refuse(NBD_REP_ERR_TOO_BIG, message);
    return undefined;
  }
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    const query = reader.text();
    if (query === undefined) return malformed(phase);
    queries.push(query);
  }
  if (reader.left !== 0) return malformed(phase);
  const exported = phase.exports.find(name);
  if (exported === undefined) {
    phase.refuse(NBD_REP_ERR_UNKNOWN, `export '${name}' not present`);
    return undefined;
  }
  return { exported, queries };
}

function malformed(phase: Negotiation): undefined {
  phase.refuse(NBD_REP_ERR_INVALID, 'malformed meta context request');
  return undefined;
}
