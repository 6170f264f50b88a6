// SPDX-License-Identifier: MIT
/** The one NBD server of a daemon, which comes and goes, with the nodes that it exports. */
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { BlockGraph } from '../../block/graph.js';
import { ExportRegistry, type RemoveMode } from './export.js';
import { ExportedNodes } from './exported-nodes.js';
import type { BoundAddress, ListenAddress } from './listener.js';
import { NbdServer, type SocketCalls } from './server.js';

export interface NbdStartOptions {
  readonly address: ListenAddress;
  /** Clients at a time; 0: no limit. The server's default when absent. */
  readonly maxConnections?: number | undefined;
  /** For the option phase; 0: no limit. The server's default when absent. */
  readonly handshakeSeconds?: number | undefined;
}

export class NbdService {
  readonly exported: ExportedNodes;
  #server: NbdServer | undefined;
  /** Stands in while no server runs: there are no exports then. */
  readonly #none = new ExportRegistry();

  /** @param sockets see NbdServerOptions */
  constructor(
    graph: BlockGraph,
    private readonly sockets?: SocketCalls,
  ) {
    this.exported = new ExportedNodes(graph, () => this.exports);
  }

  get exports(): ExportRegistry {
    return this.#server?.exports ?? this.#none;
  }

  /** The running server, for those who show its connections. */
  get server(): NbdServer | undefined {
    return this.#server;
  }

  /**
   * Starts the server. @returns where it listens: the port that the system chose, too
   * @throws BlockError DF_EXISTS when it runs already, and why it can't listen
   */
  async start(options: NbdStartOptions): Promise<BoundAddress> {
    this.checkStopped();
    const { maxConnections, handshakeSeconds } = options;
    const server = new NbdServer({
      sockets: this.sockets,
      ...(maxConnections !== undefined ? { maxConnections } : {}),
      ...(handshakeSeconds !== undefined ? { handshakeMaxSeconds: handshakeSeconds } : {}),
    });
    this.#server = server;
    try {
      return await server.listen(options.address);
    } catch (error) {
      this.#server = undefined;
      await server.stop(0);
      throw error;
    }
  }

  /** One more place to listen at, with the limits that the server has. Starts it when none runs. */
  listenAlso(options: NbdStartOptions): Promise<BoundAddress> {
    if (this.#server === undefined) return this.start(options);
    if (options.maxConnections !== undefined || options.handshakeSeconds !== undefined) {
      throw new BlockError(
        'DF_INVALID',
        'max-connections and handshake-max-seconds belong to the first --nbd-server: ' +
          'they hold for all of its addresses',
      );
    }
    return this.#server.listen(options.address);
  }

  /**
   * Ends the server, its connections and its exports; fulfilled when their nodes are free.
   * @throws BlockError DF_INVALID when none runs
   */
  async stop(): Promise<void> {
    this.checkRunning();
    await this.stopIfRunning();
  }

  /** As `stop`, but all is well when none runs. */
  async stopIfRunning(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    for (const { id } of server.exports.all()) this.exported.failHeld(id);
    await server.stop();
    await this.exported.whenNone();
    if (this.#server === server) this.#server = undefined;
  }

  /**
   * Removes an export. When nobody is connected its node is free at the end of it; else it goes with its
   * last client, which is not waited for.
   * @throws BlockError DF_NOT_FOUND; DF_IN_USE: `safe` and it has clients
   */
  remove(id: string, mode: RemoveMode): MaybePromise<void> {
    this.exports.remove(id, mode);
    if (mode === 'hard') this.exported.failHeld(id);
    return this.exported.whenFree(id);
  }

  /** @throws BlockError DF_EXISTS when a server runs */
  checkStopped(): void {
    if (this.#server !== undefined) throw new BlockError('DF_EXISTS', 'NBD server already running');
  }

  /** @throws BlockError DF_INVALID when no server runs */
  checkRunning(): void {
    if (this.#server === undefined) throw new BlockError('DF_INVALID', 'NBD server not running');
  }
}
