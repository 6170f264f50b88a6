// SPDX-License-Identifier: MIT
/** BLOCK_STATUS, of all negotiated contexts or of those that the payload names. */
import { NBD_CMD_FLAG_REQ_ONE, NBD_EINVAL } from '../../../protocol/nbd/constants.js';
import {
  NBD_BLOCK_STATUS_PAYLOAD,
  type ReceivedRequest,
  readUint64,
} from '../../../protocol/nbd/transmission.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { MetaContext } from './meta-contexts.js';
import type { CommandHost } from './plain-commands.js';
import type { StatusChunk } from './replies.js';
import { type Refusal, refuse } from './request-checks.js';
import { walkStatus } from './status-walk.js';

export interface StatusHost extends CommandHost {
  refuse(head: ReceivedRequest, refusal: Refusal): void;
}

export class StatusRequests {
  readonly #host: StatusHost;

  constructor(host: StatusHost) {
    this.#host = host;
  }

  /** Executes a checked request. `head` is not kept. */
  execute(head: ReceivedRequest): void {
    this.#walk(head, this.#host.session.contexts);
  }

  /**
   * Checks and executes a request with a payload: the length of the effect and context ids.
   * @param head `length` is that of the payload, which lies at `at` and holds whole fields
   */
  executeChosen(head: ReceivedRequest, view: DataView, at: number): void {
    const { session } = this.#host;
    const ids: number[] = [];
    for (let slot = NBD_BLOCK_STATUS_PAYLOAD.size; slot < head.length; slot += 4) {
      ids.push(view.getUint32(at + slot));
    }
    const asked = { ...head, length: readUint64(view, at) };
    const contexts = session.contexts.filter(({ id }) => ids.includes(id));
    const refusal = refuse(asked, session);
    if (refusal !== undefined) {
      this.#host.refuse(asked, refusal);
    } else if (contexts.length === 0 || contexts.length !== ids.length) {
      const message = 'NBD_CMD_BLOCK_STATUS has to name negotiated contexts, each once';
      this.#host.refuse(asked, { error: NBD_EINVAL, message });
    } else {
      this.#walk(asked, contexts);
    }
  }

  #walk(head: ReceivedRequest, contexts: readonly MetaContext[]): void {
    this.#host.count('blockStatuses');
    const one = (head.flags & NBD_CMD_FLAG_REQ_ONE) !== 0;
    const query = { offset: head.offset, length: head.length, one };
    let chunks: MaybePromise<StatusChunk[]>;
    try {
      chunks = walkStatus(this.#host.backend, contexts, query);
    } catch (reason) {
      this.#host.fail(head, reason);
      return;
    }
    if (!(chunks instanceof Promise)) {
      this.#host.replies.blockStatus(head, chunks);
      return;
    }
    const kept = { ...head };
    const replied = chunks.then((value) => this.#host.replies.blockStatus(kept, value));
    this.#host.pend(
      replied,
      0,
      () => undefined,
      (reason) => this.#host.fail(kept, reason),
    );
  }
}
