// SPDX-License-Identifier: MIT
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { QmpClient } from '../../src/qmp.js';

const LAUNCHER = fileURLToPath(new URL('../../src/daemon/launch.cjs', import.meta.url));
const START_MS = 10_000;

export interface DemoDaemonOptions {
  readonly folder: string;
  readonly name: string;
  readonly image: string;
}

/** A diskferryd with one image, exported writable as 'disk' on a UNIX socket. */
export class DemoDaemon {
  readonly socket: string;
  readonly monitor: string;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #errors = '';

  private constructor({ folder, name, image }: DemoDaemonOptions) {
    this.socket = path.join(folder, `${name}.nbd`);
    this.monitor = path.join(folder, `${name}.qmp`);
    const args = [
      ...[
        '--blockdev',
        JSON.stringify({ driver: 'file', 'node-name': 'disk', filename: image, discard: 'unmap' }),
      ],
      ...['--nbd-server', JSON.stringify({ addr: { type: 'unix', path: this.socket } })],
      ...['--export', 'nbd,id=disk,node-name=disk,name=disk,writable=on'],
      ...[
        '--chardev',
        `socket,id=qmp,path=${this.monitor.replaceAll(',', ',,')},server=on,wait=off`,
      ],
      ...['--monitor', 'qmp', '--log-level', 'warn'],
    ];
    this.#process = spawn(process.execPath, [LAUNCHER, ...args], {
      stdio: ['ignore', 'inherit', 'pipe'],
    });
    this.#process.stderr?.on('data', (chunk: Buffer) => {
      this.#errors += chunk.toString();
    });
    this.#ended = new Promise((resolve) => {
      this.#process.on('exit', () => resolve());
    });
  }

  /** Fulfilled when its monitor answers. @throws when it does not come up */
  static async start(options: DemoDaemonOptions): Promise<DemoDaemon> {
    const daemon = new DemoDaemon(options);
    const deadline = performance.now() + START_MS;
    for (;;) {
      try {
        const client = await QmpClient.connect({ path: daemon.monitor });
        client.close();
        return daemon;
      } catch (error) {
        if (daemon.#process.exitCode !== null || performance.now() > deadline) {
          daemon.kill();
          throw new Error(`daemon ${options.name} did not start: ${daemon.#errors}`, {
            cause: error,
          });
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }

  get uri(): string {
    return `nbd+unix:///disk?socket=${this.socket}`;
  }

  async quit(): Promise<void> {
    const client = await QmpClient.connect({ path: this.monitor });
    await client.execute('quit');
    client.close();
    await this.#ended;
    if (this.#errors !== '') process.stderr.write(this.#errors);
  }

  kill(): void {
    this.#process.kill('SIGKILL');
  }
}
