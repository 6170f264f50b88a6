// SPDX-License-Identifier: MIT
/**
 * A character device: a name for a stream of bytes, behind which one peer at a time comes and goes.
 * Its backend makes channels; its frontend (a monitor) uses them, one after the other.
 */
import type { WriteStream } from 'node:fs';
import { BlockError } from '../base/errors.js';
import type { Channel } from './channel.js';

/** Who uses a character device. */
export interface ChardevFrontend {
  /** A peer is there. The frontend starts the channel, and lets go of it when it is closed. */
  opened(channel: Channel): void;
  /** The device will be closed: takes no more work; resolves when what runs has been answered. */
  finish(): Promise<void>;
}

export interface ChardevBackend {
  /** Where the device leads, as `query-chardev` tells it. */
  filename(current: Channel | undefined): string;
  /**
   * Begins to make channels: `offer` is called with each. No further one is offered before the
   * last is closed. Resolves when the device can be used; rejects when it never can.
   */
  start(offer: (channel: Channel) => void): Promise<void>;
  /** Makes no more channels, and lets go of what it holds. Never rejects. */
  stop(): Promise<void>;
}

export interface ChardevOptions {
  readonly id: string;
  readonly backend: ChardevBackend;
}

export class Chardev {
  readonly id: string;
  readonly #backend: ChardevBackend;
  #log: WriteStream | undefined;
  #frontend: ChardevFrontend | undefined;
  #channel: Channel | undefined;

  constructor(options: ChardevOptions) {
    this.id = options.id;
    this.#backend = options.backend;
  }

  get filename(): string {
    return this.#backend.filename(this.#channel);
  }

  get isInUse(): boolean {
    return this.#frontend !== undefined;
  }

  /** Opens the device. @see ChardevBackend.start */
  start(): Promise<void> {
    return this.#backend.start((channel) => this.#offered(channel));
  }

  /**
   * Gives the device to a frontend, which gets the peer that is there and all that come.
   *
   * @throws {BlockError} `DF_IN_USE`: there is a frontend already
   */
  attach(frontend: ChardevFrontend): void {
    if (this.#frontend !== undefined) {
      throw new BlockError('DF_IN_USE', `Device '${this.id}' is in use`);
    }
    this.#frontend = frontend;
    if (this.#channel !== undefined) frontend.opened(this.#channel);
  }

  detach(): void {
    this.#frontend = undefined;
  }

  /** Sends a copy of all output to `log`, which belongs to the device from now on. */
  logTo(log: WriteStream): void {
    // A log that can't be written to is no reason to stop.
    log.on('error', () => undefined);
    this.#log = log;
  }

  /** A copy of output for the log file. */
  logOutput(text: string): void {
    this.#log?.write(text);
  }

  /**
   * Ends the peer's connection and the device. What runs may take `deadlineMs` to be answered, and
   * what was written as long again to go out.
   */
  async close(deadlineMs: number): Promise<void> {
    const stopped = this.#backend.stop();
    if (this.#frontend !== undefined) await within(deadlineMs, this.#frontend.finish());
    await this.#channel?.end(deadlineMs);
    await stopped;
    const log = this.#log;
    if (log !== undefined) await new Promise<void>((resolve) => log.end(() => resolve()));
  }

  #offered(channel: Channel): void {
    this.#channel = channel;
    channel.whenClosed(() => {
      if (this.#channel === channel) this.#channel = undefined;
    });
    this.#frontend?.opened(channel);
  }
}

/** Resolves with `work`, or after `ms`, whichever is first. */
async function within(ms: number, work: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}
