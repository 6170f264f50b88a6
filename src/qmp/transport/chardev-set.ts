// SPDX-License-Identifier: MIT
/** All character devices of a process, by id. */
import type { Readable, Writable } from 'node:stream';
import type {
  ChardevBackend as ChardevBackendSchema,
  ChardevInfo,
} from '../../../protocol/qapi/char.js';
import type { Infer, Output } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import { Chardev, type ChardevBackend } from '../chardev.js';
import {
  FileBackend,
  NullBackend,
  openOutput,
  PipeBackend,
  StdioBackend,
} from './file-backends.js';
import { fromLegacy } from './socket-address.js';
import { SocketClient } from './socket-client.js';
import { SocketServer } from './socket-server.js';

export type BackendOptions = Infer<typeof ChardevBackendSchema>;
type SocketOptions = Extract<BackendOptions, { type: 'socket' }>['data'];

export interface ChardevSetOptions {
  /** What `stdio` stands for; absent: it can't be used. */
  readonly stdio?: { readonly input: Readable; readonly output: Writable };
}

function invalid(text: string): BlockError {
  return new BlockError('DF_INVALID', text);
}

/** A socket's backend, after the check that its options go together. */
function socketBackend(options: SocketOptions): ChardevBackend {
  const address = fromLegacy(options.addr);
  const { server = true, wait, nodelay = false, websocket = false, reconnect } = options;
  if (reconnect !== undefined && address.type === 'fd') {
    throw invalid("'reconnect' option is incompatible with 'fd' address type");
  }
  if (server) {
    if (reconnect !== undefined) {
      throw invalid("'reconnect' option is incompatible with socket in server listen mode");
    }
    return new SocketServer({ address, nodelay, websocket, wait: wait ?? false });
  }
  if (websocket) throw invalid('Websocket client is not implemented');
  if (wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  if (reconnect !== undefined && (reconnect < 0 || reconnect > RECONNECT_SECONDS_MAX)) {
    throw invalid(`'reconnect' must be from 0 to ${RECONNECT_SECONDS_MAX} seconds`);
  }
  return new SocketClient({ address, nodelay, reconnectSeconds: reconnect ?? 0 });
}

/** What a timer can wait, rounded down to days. */
const RECONNECT_SECONDS_MAX = 24 * 24 * 3600;

export class ChardevSet {
  readonly #chardevs = new Map<string, Chardev>();
  readonly #options: ChardevSetOptions;

  constructor(options: ChardevSetOptions = {}) {
    this.#options = options;
  }

  /**
   * Makes a character device and opens it. With `wait`, that takes until the first client is there.
   *
   * @throws {BlockError} `DF_EXISTS`: the id is taken; others: it can't be opened. Nothing remains then.
   */
  async add(id: string, options: BackendOptions): Promise<Chardev> {
    if (this.#chardevs.has(id)) {
      throw new BlockError('DF_EXISTS', `Chardev with id '${id}' already exists`);
    }
    if (options.type === 'stdio') this.#checkStdioFree();
    const chardev = new Chardev({ id, backend: this.#backend(options) });
    // The id is taken from here on; opening may need time.
    this.#chardevs.set(id, chardev);
    try {
      const { logfile, logappend = false } = options.data;
      if (logfile !== undefined) chardev.logTo(await openOutput(logfile, { append: logappend }));
      await chardev.start();
    } catch (error) {
      if (this.#chardevs.get(id) === chardev) this.#chardevs.delete(id);
      await chardev.close(0);
      throw error;
    }
    return chardev;
  }

  find(id: string): Chardev | undefined {
    return this.#chardevs.get(id);
  }

  /** @throws {BlockError} `DF_NOT_FOUND` */
  get(id: string): Chardev {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new BlockError('DF_NOT_FOUND', `Chardev '${id}' not found`);
    return chardev;
  }

  /** @throws {BlockError} `DF_NOT_FOUND`; `DF_IN_USE`: something uses it */
  async remove(id: string): Promise<void> {
    const chardev = this.get(id);
    if (chardev.isInUse) throw new BlockError('DF_IN_USE', `Chardev '${id}' is busy`);
    this.#chardevs.delete(id);
    await chardev.close(0);
  }

  /**
   * Replaces a device that nothing uses.
   *
   * @throws {BlockError} `DF_NOT_FOUND`; `DF_IN_USE`; others: the new one can't be opened, and the old one is gone
   */
  async change(id: string, options: BackendOptions): Promise<void> {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Chardev '${id}' does not exist`);
    }
    if (chardev.isInUse) {
      throw new BlockError('DF_IN_USE', 'Chardev user does not support chardev hotswap');
    }
    this.#backend(options);
    await this.remove(id);
    await this.add(id, options);
  }

  infos(): readonly Output<typeof ChardevInfo>[] {
    return [...this.#chardevs.values()].map((chardev) => ({
      label: chardev.id,
      filename: chardev.filename,
      'frontend-open': chardev.isInUse,
    }));
  }

  /** Ends all devices, each after at most `deadlineMs` for what was written. Never rejects. */
  async close(deadlineMs: number): Promise<void> {
    const all = [...this.#chardevs.values()];
    this.#chardevs.clear();
    await Promise.allSettled(all.map((chardev) => chardev.close(deadlineMs)));
  }

  /** @throws BlockError DF_IN_USE: two devices would each get parts of what comes in */
  #checkStdioFree(): void {
    const taken = [...this.#chardevs.values()].some(({ filename }) => filename === 'stdio');
    if (taken) throw new BlockError('DF_IN_USE', 'cannot use stdio by multiple character devices');
  }

  #backend(options: BackendOptions): ChardevBackend {
    switch (options.type) {
      case 'socket':
        return socketBackend(options.data);
      case 'file':
        return new FileBackend({ append: false, ...options.data });
      case 'pipe':
        return new PipeBackend(options.data.device);
      case 'null':
        return new NullBackend();
      default: {
        const { stdio } = this.#options;
        if (stdio === undefined) throw invalid('standard input and output are not available');
        return new StdioBackend(stdio);
      }
    }
  }
}
