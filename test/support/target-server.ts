// SPDX-License-Identifier: MIT
/** A server of one image, of this project or another, which can be killed and started again. */
import type { ChildProcess } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { daemonCommand } from './daemon.js';
import { untilListens } from './listening.js';
import { spawnTracked } from './peers.js';
import type { Scope } from './temp.js';

export const TARGET_PEERS = ['qemu-nbd', 'qemu-storage-daemon', 'nbdkit', 'diskferryd'] as const;
export type TargetPeer = (typeof TARGET_PEERS)[number];

export interface TargetServerOptions {
  readonly peer: TargetPeer;
  /** Raw. Served under the name `disk`. */
  readonly image: string;
  readonly dir: string;
}

export class TargetServer {
  readonly socketPath: string;
  readonly #options: TargetServerOptions;
  /** While it exists, an nbdkit has no space left. */
  readonly #fullPath: string;
  #process: ChildProcess | undefined;
  #ended: Promise<unknown> = Promise.resolve();

  private constructor(options: TargetServerOptions) {
    this.#options = options;
    this.socketPath = join(options.dir, 'target.sock');
    this.#fullPath = join(options.dir, 'full');
  }

  /** Runs until the end of the scope, at the latest. */
  static async start(scope: Scope, options: TargetServerOptions): Promise<TargetServer> {
    const server = new TargetServer(options);
    scope.defer(() => server.kill());
    await server.restart();
    return server;
  }

  get canBeFull(): boolean {
    return this.#options.peer === 'nbdkit';
  }

  /** Writes end with ENOSPC from now on. */
  async fill(): Promise<void> {
    await writeFile(this.#fullPath, '');
  }

  async empty(): Promise<void> {
    await rm(this.#fullPath, { force: true });
  }

  /** Without a chance to clean up. */
  async kill(): Promise<void> {
    this.#process?.kill('SIGKILL');
    this.#process = undefined;
    await this.#ended;
  }

  /** Starts it when it does not run; resolves when it takes connections. */
  async restart(): Promise<void> {
    if (this.#process !== undefined) return;
    await rm(this.socketPath, { force: true });
    const { program, args } = this.#command();
    const child = spawnTracked(program, args, { stdio: 'ignore' });
    this.#process = child;
    this.#ended = new Promise((resolve) => child.once('close', resolve));
    await untilListens(child, this.socketPath);
  }

  #command(): { program: string; args: string[] } {
    const { peer, image } = this.#options;
    const path = this.socketPath;
    const full = this.#fullPath;
    if (peer === 'qemu-nbd') {
      const args = ['-f', 'raw', '-k', path, '-x', 'disk', '-t', '-e', '0', image];
      return { program: peer, args: [...args.slice(0, -1), '--discard=unmap', image] };
    }
    if (peer === 'nbdkit') {
      const errors = ['pwrite', 'zero'].flatMap((call) => [
        `error-${call}=ENOSPC`,
        `error-${call}-rate=100%`,
        `error-${call}-file=${full}`,
      ]);
      const args = ['-f', '-U', path, '-e', 'disk', '--filter=error', 'file', image];
      return { program: peer, args: [...args, ...errors] };
    }
    const args = [
      ...['--blockdev', `driver=file,node-name=disk,filename=${image},discard=unmap`],
      ...['--nbd-server', `addr.type=unix,addr.path=${path},max-connections=0`],
      ...['--export', 'type=nbd,id=e,node-name=disk,name=disk,writable=on'],
    ];
    if (peer === 'qemu-storage-daemon') return { program: peer, args };
    const command = daemonCommand();
    return { program: command.program, args: [...command.args, ...args] };
  }
}
