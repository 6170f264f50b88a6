// SPDX-License-Identifier: MIT
/** Character devices that are always connected: files, named pipes, standard input and output, nothing. */
import {
  closeSync,
  constants,
  createReadStream,
  createWriteStream,
  fstatSync,
  open,
  openSync,
  type WriteStream,
} from 'node:fs';
import { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { promisify } from 'node:util';
import { BlockError, errnoName, fromSystemError } from '../../base/errors.js';
import { Channel } from '../channel.js';
import type { ChardevBackend } from '../chardev.js';

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
  const { O_APPEND, O_CREAT, O_NONBLOCK, O_TRUNC, O_WRONLY } = constants;
  const mode = options.append ? O_APPEND : O_TRUNC;
  // Without O_NONBLOCK a FIFO that nobody reads would hold a thread of the pool for ever.
  const fd = await openFd(path, O_WRONLY | O_CREAT | O_NONBLOCK | mode);
  return createWriteStream(path, { fd });
}

/** @throws {BlockError} says what can't be opened, and why */
async function openFd(path: string, flags: number): Promise<number> {
  try {
    return await promisify(open)(path, flags, NEW_FILE_MODE);
  } catch (error) {
    throw fromSystemError(error, `Could not open '${path}'`, { path });
  }
}

/** Permissions of a file that is created, less the process's umask. */
const NEW_FILE_MODE = 0o666;

export class FileBackend extends SingleChannel {
  constructor(
    readonly options: { readonly out: string; readonly in?: string; readonly append: boolean },
  ) {
    super('file');
  }

  protected async open(): Promise<Channel> {
    const { out, in: source } = this.options;
    const output = await openOutput(out, this.options);
    if (source === undefined) return new Channel({ output });
    try {
      const fd = await openFd(source, constants.O_RDONLY | constants.O_NONBLOCK);
      return new Channel({ output, input: createReadStream(source, { fd }) });
    } catch (error) {
      output.destroy();
      throw error;
    }
  }
}

/** A FIFO is opened for both directions, so that it has no end when a peer goes. */
function openFifo(path: string): number {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    throw fromSystemError(error, `Could not open '${path}'`, { path });
  }
  if (fstatSync(fd).isFIFO()) return fd;
  closeSync(fd);
  throw new BlockError('DF_INVALID', `'${path}' is not a pipe`, { path });
}

function openBoth(pathIn: string, pathOut: string): [inFd: number, outFd: number] {
  const inFd = openFifo(pathIn);
  try {
    return [inFd, openFifo(pathOut)];
  } catch (error) {
    closeSync(inFd);
    throw error;
  }
}

/** A pair of pipes, `PATH.in` and `PATH.out`, or one for both directions. */
function openFifos(path: string): [inFd: number, outFd: number] {
  try {
    return openBoth(`${path}.in`, `${path}.out`);
  } catch (error) {
    if (errnoName(error) !== 'ENOENT') throw error;
    return openBoth(path, path);
  }
}

export class PipeBackend extends SingleChannel {
  constructor(readonly path: string) {
    super('pipe');
  }

  protected async open(): Promise<Channel> {
    const [inFd, outFd] = openFifos(this.path);
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
