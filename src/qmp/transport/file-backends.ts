// SPDX-License-Identifier: MIT
/** Character devices that are always connected: files, named pipes, standard input and output, nothing. */

import type { WriteStream } from 'node:fs';
import { closeSync, constants, createReadStream, createWriteStream, openSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { errnoName, fromSystemError } from '../../base/errors.js';
import { Channel } from './channel.js';
import type { ChardevBackend } from './chardev.js';

/** A backend with one channel from the start; when that is over, so is the device's use. */
abstract class SingleChannel implements ChardevBackend {
  constructor(readonly kind: string) {}

  protected abstract open(): Promise<Channel>;

  filename(): string {
    return this.kind;
  }

  async start(offer: (channel: Channel) => void): Promise<void> {
    offer(await this.open());
  }

  async stop(): Promise<void> {
    // The channel is ended by the device that it was offered to.
  }
}

/** Opens a file for output, emptying it unless `append`. */
export async function openOutput(
  path: string,
  options: { readonly append: boolean },
): Promise<WriteStream> {
  const stream = createWriteStream(path, { flags: options.append ? 'a' : 'w' });
  try {
    await new Promise<void>((resolve, reject) => {
      stream.once('open', () => resolve());
      stream.once('error', reject);
    });
  } catch (error) {
    throw fromSystemError(error, `Could not open '${path}'`, { path });
  }
  return stream;
}

export class FileBackend extends SingleChannel {
  constructor(
    readonly options: { readonly out: string; readonly in?: string; readonly append: boolean },
  ) {
    super('file');
  }

  protected async open(): Promise<Channel> {
    const output = await openOutput(this.options.out, this.options);
    if (this.options.in === undefined) return new Channel({ output });
    return new Channel({ output, input: createReadStream(this.options.in) });
  }
}

/** A FIFO is opened for both directions, so that it has no end when a peer goes. */
function openFifo(path: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    throw fromSystemError(error, `Could not open '${path}'`, { path });
  }
}

export class PipeBackend extends SingleChannel {
  constructor(readonly path: string) {
    super('pipe');
  }

  protected async open(): Promise<Channel> {
    const fds: number[] = [];
    try {
      fds.push(openFifo(`${this.path}.in`));
      fds.push(openFifo(`${this.path}.out`));
    } catch (error) {
      for (const fd of fds.splice(0)) closeSync(fd);
      if (errnoName(error) !== 'ENOENT') throw error;
      // One pipe for both directions.
      fds.push(openFifo(this.path));
      fds.push(openFifo(this.path));
    }
    const [inFd = -1, outFd = -1] = fds;
    // Sockets, not files: a file's read would hold a thread of the pool while nothing comes.
    const input = new Socket({ fd: inFd, readable: true, writable: false });
    const output = new Socket({ fd: outFd, readable: false, writable: true });
    return new Channel({ input, output });
  }
}

export class StdioBackend extends SingleChannel {
  constructor(readonly streams: { readonly input: Readable; readonly output: Writable }) {
    super('stdio');
  }

  protected async open(): Promise<Channel> {
    return new Channel(this.streams);
  }
}

export class NullBackend implements ChardevBackend {
  filename(): string {
    return 'null';
  }

  async start(): Promise<void> {
    // Nobody ever comes.
  }

  async stop(): Promise<void> {
    // There is nothing to let go of.
  }
}
