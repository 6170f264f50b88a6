// SPDX-License-Identifier: MIT
/** A wire between a client and a server on UNIX sockets, which can be cut, or go silent. */
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Scope } from './temp.js';

export class CutRelay {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #state: 'whole' | 'silent' | 'cut off' = 'whole';

  private constructor(
    readonly path: string,
    serverPath: string,
  ) {
    this.#server = createServer({ allowHalfOpen: false }, (client) => {
      if (this.#state === 'cut off') client.destroy();
      else this.#join(client, connect(serverPath));
    });
  }

  /** Listens on `path`; ends with the scope. */
  static async start(scope: Scope, path: string, serverPath: string): Promise<CutRelay> {
    const relay = new CutRelay(path, serverPath);
    await new Promise<void>((resolve, reject) => {
      relay.#server.once('error', reject).listen(path, () => resolve());
    });
    scope.defer(async () => {
      relay.cut();
      await new Promise((resolve) => relay.#server.close(resolve));
    });
    return relay;
  }

  /** Ends all connections; new ones are fine. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Ends all connections, and those that come, until `mend`. */
  cutOff(): void {
    this.#state = 'cut off';
    this.cut();
  }

  /** Nothing passes any more, in either direction, until `mend`; connections stay. */
  goSilent(): void {
    this.#state = 'silent';
    for (const socket of this.#sockets) socket.pause();
  }

  mend(): void {
    this.#state = 'whole';
    for (const socket of this.#sockets) socket.resume();
  }

  #join(client: Socket, server: Socket): void {
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('data', (chunk) => {
        if (to.write(chunk) || this.#state === 'silent') return;
        from.pause();
        to.once('drain', () => {
          if (this.#state !== 'silent') from.resume();
        });
      });
      from.on('error', () => undefined); // its close tells
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      if (this.#state === 'silent') from.pause();
    }
  }
}
