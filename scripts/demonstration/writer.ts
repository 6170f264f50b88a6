// SPDX-License-Identifier: MIT
import { randomFillSync } from 'node:crypto';
import { NbdClient } from '../../src/nbd.js';

const BLOCK = 4096;
const DEPTH = 8;
/** The part of the disk that is written to, bytes: a guest, too, has a working set. */
const WORKING_SET = 64 * 1024 * 1024;

/**
 * A client that writes random blocks, several at a time and without a pause, and remembers what it
 * was told is written.
 */
export class Writer {
  acknowledged = 0;
  errors = 0;
  slowestMs = 0;
  #stopping = false;

  private constructor(
    private readonly client: NbdClient,
    private readonly content: Buffer,
  ) {}

  /** @param content of the disk; changed with each acknowledged write */
  static async connect(socket: string, content: Buffer): Promise<Writer> {
    const address = { type: 'unix', path: socket } as const;
    return new Writer(await NbdClient.connect({ address, exportName: 'disk' }), content);
  }

  /** Writes until `stop`, then flushes and disconnects. */
  async run(): Promise<void> {
    const lanes = Array.from({ length: DEPTH }, (_, lane) => this.#lane(lane));
    await Promise.all(lanes);
    await this.client.flush();
    await this.client.close();
  }

  stop(): void {
    this.#stopping = true;
  }

  /** Each lane has blocks of its own, so that no two writes to one block are under way together. */
  async #lane(lane: number): Promise<void> {
    const block = Buffer.alloc(BLOCK);
    const blocks = Math.min(WORKING_SET, this.content.byteLength) / BLOCK / DEPTH;
    while (!this.#stopping) {
      const offset = (Math.floor(Math.random() * blocks) * DEPTH + lane) * BLOCK;
      randomFillSync(block);
      const start = performance.now();
      try {
        await this.client.write(offset, block);
        block.copy(this.content, offset);
        this.acknowledged++;
      } catch {
        this.errors++;
        await new Promise((resolve) => setTimeout(resolve, 10)); // a lost connection fails at once
      }
      this.slowestMs = Math.max(this.slowestMs, performance.now() - start);
    }
  }
}
