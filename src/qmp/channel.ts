// SPDX-License-Identifier: MIT
/** Two streams, one in and one out, as one connection to a peer. */
import { finished, type Readable, type Writable } from 'node:stream';

export interface ChannelListener {
  /** Bytes from the peer; they belong to the listener. */
  data(bytes: Uint8Array): void;
  /** The peer sends no more, but may still read. */
  ended(): void;
  /** The connection is over; nothing follows. */
  closed(): void;
  /** All that was written has been taken over by the system. */
  drained(): void;
}

export interface ChannelStreams {
  /** Absent: nothing ever comes in. */
  readonly input?: Readable;
  /** Absent: what is written is dropped. */
  readonly output?: Writable;
  /** For a person: '127.0.0.1:5000'. */
  readonly peer?: string;
  /** What to do besides ending the streams, once: close descriptors. */
  readonly release?: () => void;
}

/** Owns its streams: when one breaks, or `close` is called, both end. */
export class Channel {
  readonly peer: string;
  readonly #input: Readable | undefined;
  readonly #output: Writable | undefined;
  readonly #release: (() => void) | undefined;
  #listener: ChannelListener | undefined;
  #isClosed = false;
  #onClosed: (() => void)[] = [];

  constructor(streams: ChannelStreams) {
    this.#input = streams.input;
    this.#output = streams.output;
    this.#release = streams.release;
    this.peer = streams.peer ?? '';
    const { output, input } = streams;
    // An error is one of the ways in which a connection ends; the next lines see it as its end.
    if (output !== undefined) {
      output.on('error', () => undefined);
      output.on('drain', () => this.#listener?.drained());
      finished(output, { readable: false }, () => this.destroy());
    }
    if (input !== undefined && input !== (output as unknown)) {
      input.on('error', () => this.destroy());
    }
    input?.on('close', () => this.#inputClosed());
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Bytes written that the system has not taken over. */
  get unsentBytes(): number {
    return this.#output?.writableLength ?? 0;
  }

  /** Starts to read, and tells `listener` from now on. */
  start(listener: ChannelListener): void {
    this.#listener = listener;
    this.#input?.on('data', (bytes: Buffer) => this.#listener?.data(bytes));
    this.#input?.on('end', () => this.#listener?.ended());
  }

  /** Calls `done` when the channel is over, at once when it already is. */
  whenClosed(done: () => void): void {
    if (this.#isClosed) done();
    else this.#onClosed.push(done);
  }

  write(text: string): void {
    if (!this.#isClosed && this.#output?.writable === true) this.#output.write(text);
  }

  pause(): void {
    this.#input?.pause();
  }

  resume(): void {
    if (!this.#isClosed) this.#input?.resume();
  }

  /** Ends the connection after what was written has gone out, at the latest after `deadlineMs`. */
  end(deadlineMs: number): Promise<void> {
    if (this.#isClosed) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.destroy(), deadlineMs);
      this.whenClosed(() => {
        clearTimeout(timer);
        resolve();
      });
      if (this.#output === undefined) this.destroy();
      // Standard output can't be ended; when its queue is empty, all is done.
      else this.#output.end(() => this.destroy());
    });
  }

  /** Ends the connection now; what has not gone out is lost. */
  destroy(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#input?.destroy();
    this.#output?.destroy();
    this.#release?.();
    const listener = this.#listener;
    this.#listener = undefined;
    listener?.closed();
    for (const done of this.#onClosed) done();
    this.#onClosed = [];
  }

  /** Without a way out, an input that is over ends the channel; otherwise the listener decides. */
  #inputClosed(): void {
    if (this.#output === undefined || this.#input === (this.#output as unknown)) this.destroy();
  }
}
