// SPDX-License-Identifier: MIT
/** A client of the running test at a stand-in for a server, and what it fails with. */
import { BlockError } from '../../../../src/base/errors.js';
import { NbdClient, type NbdClientOptions } from '../../../../src/nbd/client/client.js';
import type { NbdClientEvent } from '../../../../src/nbd/client/pool.js';
import { FakeNbdPeer, type FakePeerOptions } from '../../../support/fake-nbd-peer.js';
import { type Scope, testScope } from '../../../support/temp.js';

export interface ConnectedClient {
  readonly scope: Scope;
  readonly peer: FakeNbdPeer;
  readonly client: NbdClient;
  /** What the client has told so far. */
  readonly events: NbdClientEvent[];
}

export async function start(
  options: FakePeerOptions = {},
  clientOptions: Partial<NbdClientOptions> = {},
): Promise<ConnectedClient> {
  const scope = testScope();
  const peer = await FakeNbdPeer.start(scope, options);
  const events: NbdClientEvent[] = [];
  const client = await NbdClient.connect({
    address: peer.address,
    onEvent: (event) => events.push(event),
    ...clientOptions,
  });
  scope.defer(() => client.close());
  return { scope, peer, client, events };
}

/** What `work` fails with. @throws Error when it succeeds, or fails with anything but a BlockError */
export async function failure(work: Promise<unknown>): Promise<BlockError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error('it did not fail');
}
