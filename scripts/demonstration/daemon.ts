// SPDX-License-Identifier: MIT
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { QmpClient } from '../../src/qmp.js';

const LAUNCHER = fileURLToPath(new URL('../../src/daemon/launch.cjs', import.meta.url));
const START_MS = 30_000;

export interface DemoDaemonOptions {
  readonly folder: string;
  readonly name: string;
  readonly image: string;
}

/** A diskferryd with one image, exported writable as 'disk' on a UNIX socket. */
export class DemoDaemon {
  readonly socket: string;
  /** The monitor for the operator; the demonstration watches on one of its own. */
  readonly monitor: string;
  /** Bytes that jobs have copied, those that were copied again included. */
  copied = 0;
  readonly #watch: string;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #client: QmpClient | undefined;
  #errors = '';

  private constructor({ folder, name, image }: DemoDaemonOptions) {
    this.socket = path.join(folder, `${name}.nbd`);
    this.monitor = path.join(folder, `${name}.qmp`);
    this.#watch = path.join(folder, `${name}.watch`);
    const node = { driver: 'file', 'node-name': 'disk', filename: image, discard: 'unmap' };
    const args = [
      ...['--blockdev', JSON.stringify(node)],
      ...['--nbd-server', JSON.stringify({ addr: { type: 'unix', path: this.socket } })],
      ...['--export', 'nbd,id=disk,node-name=disk,name=disk,writable=on'],
      ...['--chardev', monitorSocket('qmp', this.monitor), '--monitor', 'qmp'],
      ...['--chardev', monitorSocket('watch', this.#watch), '--monitor', 'watch'],
      ...['--log-level', 'warn'],
    ];
    this.#process = spawn(process.execPath, [LAUNCHER, ...args], {
      stdio: ['ignore', 'inherit', 'pipe'],
    });
    this.#process.stderr?.on('data', (chunk: Buffer) => {
      this.#errors += chunk.toString();
    });
    this.#ended = new Promise((resolve) => {
      this.#process.on('error', () => resolve());
      this.#process.on('exit', () => resolve());
    });
  }

  /** Fulfilled when its monitor answers. @throws when it does not come up */
  static async start(options: DemoDaemonOptions): Promise<DemoDaemon> {
    const daemon = new DemoDaemon(options);
    try {
      await daemon.#connect(performance.now() + START_MS);
    } catch (cause) {
      await daemon.kill();
      throw new Error(`daemon ${options.name} did not start: ${daemon.#errors}`, { cause });
    }
    return daemon;
  }

  get uri(): string {
    return `nbd+unix:///disk?socket=${this.socket}`;
  }

  async #connect(deadline: number): Promise<void> {
    for (;;) {
      try {
        this.#client = await QmpClient.connect({ path: this.#watch });
        break;
      } catch (error) {
        if (this.#process.exitCode !== null || performance.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
    this.#client.onEvent(({ name, data }) => {
      if (name === 'BLOCK_JOB_COMPLETED') this.copied += Number(data.offset);
    });
  }

  /** Ends it in order. @throws Error when it ends otherwise */
  async quit(): Promise<void> {
    await this.#client?.execute('quit');
    this.#client?.close();
    await this.#ended;
    if (this.#errors !== '') process.stderr.write(this.#errors);
    if (this.#process.exitCode !== 0) {
      throw new Error(`a daemon ended with ${this.#process.exitCode ?? this.#process.signalCode}`);
    }
  }

  async kill(): Promise<void> {
    this.#client?.close();
    this.#process.kill('SIGKILL');
    await this.#ended;
  }
}

const monitorSocket = (id: string, file: string): string =>
  `socket,id=${id},path=${file.replaceAll(',', ',,')},server=on,wait=off`;
