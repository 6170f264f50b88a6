// SPDX-License-Identifier: MIT
/** A wire between a command and a monitor, on which each command can be waited for, and cut. */
import { connect, createServer, type Socket } from 'node:net';
import type { Scope } from './temp.js';

export class MonitorTap {
  readonly #sockets = new Set<Socket>();

  private constructor(readonly path: string) {}

  /**
   * Listens on `path`; ends with the scope.
   * @param passing called with the name of each command; it goes on to the monitor when that is done
   */
  static async start(
    scope: Scope,
    options: {
      readonly path: string;
      readonly monitorPath: string;
      readonly passing: (command: string) => void | Promise<void>;
    },
  ): Promise<MonitorTap> {
    const { path, monitorPath, passing } = options;
    const tap = new MonitorTap(path);
    const server = createServer((client) => tap.#join(client, connect(monitorPath), passing));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).listen(path, () => resolve());
    });
    scope.defer(async () => {
      tap.cut();
      await new Promise((resolve) => server.close(resolve));
    });
    return tap;
  }

  /** Ends all connections; what has not passed is lost. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(client: Socket, monitor: Socket, passing: (command: string) => void | Promise<void>): void {
    for (const [from, to] of [
      [client, monitor],
      [monitor, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => undefined); // its close tells
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
    monitor.pipe(client);
    let partial = '';
    let before: Promise<unknown> = Promise.resolve();
    client.setEncoding('utf8').on('data', (text: string) => {
      const lines = (partial + text).split('\n');
      partial = lines.pop() ?? '';
      for (const line of lines) {
        before = before.then(async () => {
          await passing((JSON.parse(line) as { execute: string }).execute);
          if (!monitor.destroyed) monitor.write(`${line}\n`);
        });
      }
    });
  }
}
