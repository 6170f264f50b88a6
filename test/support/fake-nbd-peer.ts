// SPDX-License-Identifier: MIT
/**
 * An NBD server in a few lines that shares no code with ours, and lies where it is told to.
 * By default it serves zeroed memory truthfully; each option replaces one piece of that.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Scope } from './temp.js';

const MAGIC_REQUEST = 0x25609513;
const MAGIC_EXTENDED_REQUEST = 0x21e41c71;
const MAGIC_SIMPLE = 0x67446698;
const MAGIC_STRUCTURED = 0x668e33ef;
const MAGIC_EXTENDED = 0x6e8a278c;
const ERR_UNSUP = 0x80000001;

export interface FakeRequest {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
  /** WRITE only. */
  readonly payload: Buffer;
}

export interface FakePeerOptions {
  readonly size?: number;
  /** Transmission flags; default: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, CACHE, FAST_ZERO. */
  readonly flags?: number;
  readonly replies?: 'simple' | 'structured' | 'extended';
  /** Handshake flags; 3: fixed newstyle and no zeroes. */
  readonly handshakeFlags?: number;
  /** Sent instead of the greeting; then nothing more is said. */
  readonly greeting?: Buffer;
  /** minimum, preferred, maximum. */
  readonly blockSizes?: readonly [number, number, number];
  /** GO is unknown: only EXPORT_NAME is left. */
  readonly withoutGo?: boolean;
  /** Contexts granted, id = index + 1. */
  readonly contexts?: readonly string[];
  /** True when it has answered the option itself. */
  readonly onOption?: (peer: FakeConnection, option: number, data: Buffer) => boolean;
  /** True when it has dealt with the request itself. */
  readonly onRequest?: (peer: FakeConnection, request: FakeRequest) => boolean;
}

export const bytes = {
  u16(value: number): Buffer {
    const buffer = Buffer.alloc(2);
    buffer.writeUInt16BE(value);
    return buffer;
  },
  u32(value: number): Buffer {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32BE(value);
    return buffer;
  },
  u64(value: number | bigint): Buffer {
    const buffer = Buffer.alloc(8);
    buffer.writeBigUInt64BE(BigInt(value));
    return buffer;
  },
};
const { u16, u32, u64 } = bytes;

export class FakeConnection {
  readonly requests: FakeRequest[] = [];
  #received = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #closed = false;

  constructor(
    readonly peer: FakeNbdPeer,
    readonly socket: Socket,
  ) {
    socket.on('data', (data: Buffer) => {
      this.#received = Buffer.concat([this.#received, data]);
      this.#wake?.();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#closed = true;
      this.#wake?.();
    });
  }

  async read(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      if (this.#closed) throw new Error('closed');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const result = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return result;
  }

  send(...pieces: Buffer[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(pieces));
  }

  optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): void {
    this.send(u64(0x3e889045565a9), u32(option), u32(type), u32(data.length), data);
  }

  simpleReply(request: FakeRequest, error = 0, data: Buffer = Buffer.alloc(0)): void {
    this.send(u32(MAGIC_SIMPLE), u32(error), u64(request.cookie), data);
  }

  /** A chunk in the negotiated form; `done`: the last one. */
  chunk(request: FakeRequest, type: number, payload: Buffer, done = true): void {
    const flags = u16(done ? 1 : 0);
    if (this.peer.options.replies === 'extended') {
      const head = [u32(MAGIC_EXTENDED), flags, u16(type), u64(request.cookie)];
      this.send(...head, u64(request.offset), u64(payload.length), payload);
    } else {
      const head = [u32(MAGIC_STRUCTURED), flags, u16(type), u64(request.cookie)];
      this.send(...head, u32(payload.length), payload);
    }
  }

  dataChunk(request: FakeRequest, offset: number, data: Buffer, done = true): void {
    this.chunk(request, 1, Buffer.concat([u64(offset), data]), done);
  }

  async serve(): Promise<void> {
    const { options } = this.peer;
    if (options.greeting !== undefined) {
      this.send(options.greeting);
      return;
    }
    const flags = options.handshakeFlags ?? 3;
    this.send(Buffer.from('NBDMAGICIHAVEOPT'), u16(flags));
    const clientFlags = (await this.read(4)).readUInt32BE();
    await this.#options((clientFlags & 2) !== 0);
    for (;;) await this.#request();
  }

  async #options(noZeroes: boolean): Promise<void> {
    for (;;) {
      const head = await this.read(16);
      const option = head.readUInt32BE(8);
      const data = await this.read(head.readUInt32BE(12));
      this.peer.optionsSeen.push(option);
      if (this.peer.options.onOption?.(this, option, data)) continue;
      if (this.#answer(option, data, noZeroes)) return;
    }
  }

  /** True when the option phase is over. */
  #answer(option: number, data: Buffer, noZeroes: boolean): boolean {
    const { options, size, flags } = this.peer;
    const replies = options.replies ?? 'structured';
    if (option === 1) {
      this.send(u64(size), u16(flags), Buffer.alloc(noZeroes ? 0 : 124));
      return true;
    }
    const granted = option === 11 ? replies === 'extended' : option === 8 && replies !== 'simple';
    if (granted) this.optionReply(option, 1);
    else if (option === 10) this.#metaContexts(data);
    else if (option === 7 && !options.withoutGo) {
      this.optionReply(7, 3, Buffer.concat([u16(0), u64(size), u16(flags)]));
      const sizes = options.blockSizes;
      if (sizes !== undefined) {
        this.optionReply(7, 3, Buffer.concat([u16(3), ...sizes.map((value) => u32(value))]));
      }
      this.optionReply(7, 1);
      return true;
    } else this.optionReply(option, ERR_UNSUP);
    return false;
  }

  #metaContexts(data: Buffer): void {
    const text = data.toString('latin1');
    for (const [index, name] of (this.peer.options.contexts ?? []).entries()) {
      if (!text.includes(name)) continue;
      this.optionReply(10, 4, Buffer.concat([u32(index + 1), Buffer.from(name)]));
    }
    this.optionReply(10, 1);
  }

  async #request(): Promise<void> {
    const extended = this.peer.options.replies === 'extended';
    const head = await this.read(extended ? 32 : 28);
    const magic = extended ? MAGIC_EXTENDED_REQUEST : MAGIC_REQUEST;
    if (head.readUInt32BE() !== magic) throw new Error('bad request magic');
    const type = head.readUInt16BE(6);
    const length = extended ? Number(head.readBigUInt64BE(24)) : head.readUInt32BE(24);
    const request: FakeRequest = {
      flags: head.readUInt16BE(4),
      type,
      cookie: head.readBigUInt64BE(8),
      offset: Number(head.readBigUInt64BE(16)),
      length,
      payload: type === 1 ? await this.read(length) : Buffer.alloc(0),
    };
    this.requests.push(request);
    this.peer.requests.push(request);
    if (type === 2) this.socket.end();
    else if (!this.peer.options.onRequest?.(this, request)) this.answer(request);
  }

  /** The truthful answer. */
  answer(request: FakeRequest): void {
    const { memory, options } = this.peer;
    const { offset, length } = request;
    if (request.type === 1) request.payload.copy(memory, offset);
    if (request.type === 6) memory.fill(0, offset, offset + length);
    const simple = options.replies === 'simple';
    if (request.type === 0) {
      const data = memory.subarray(offset, offset + length);
      if (simple) this.simpleReply(request, 0, data);
      else this.dataChunk(request, offset, data);
    } else if (request.type === 7) {
      const wide = options.replies === 'extended';
      const extent = wide ? [u32(1), u64(length), u64(0)] : [u32(length), u32(0)];
      const count = options.contexts?.length ?? 0;
      for (let id = 1; id <= count; id++) {
        this.chunk(request, wide ? 6 : 5, Buffer.concat([u32(id), ...extent]), id === count);
      }
    } else if (options.replies === 'extended') {
      this.chunk(request, 0, Buffer.alloc(0));
    } else {
      this.simpleReply(request);
    }
  }
}

export class FakeNbdPeer {
  readonly memory: Buffer;
  readonly size: number;
  readonly flags: number;
  readonly connections: FakeConnection[] = [];
  /** Of all connections, in order. */
  readonly requests: FakeRequest[] = [];
  readonly optionsSeen: number[] = [];
  #server: Server | undefined;

  private constructor(
    readonly path: string,
    public options: FakePeerOptions,
  ) {
    this.size = options.size ?? 1024 * 1024;
    this.flags = options.flags ?? 0xced;
    this.memory = Buffer.alloc(Math.min(this.size, 64 * 1024 * 1024));
  }

  static async start(scope: Scope, options: FakePeerOptions = {}): Promise<FakeNbdPeer> {
    const peer = new FakeNbdPeer(join(await scope.tempDir(), 'fake.sock'), options);
    await peer.listen();
    scope.defer(() => peer.stop());
    return peer;
  }

  get address(): { readonly type: 'unix'; readonly path: string } {
    return { type: 'unix', path: this.path };
  }

  async listen(): Promise<void> {
    const server = createServer((socket) => {
      const connection = new FakeConnection(this, socket);
      this.connections.push(connection);
      connection.serve().catch(() => socket.destroy());
    });
    this.#server = server;
    await new Promise<void>((resolve) => server.listen(this.path, resolve));
  }

  /** Cuts every connection and listens no more. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    const closed = new Promise<void>((resolve) => {
      if (server === undefined) resolve();
      else server.close(() => resolve());
    });
    this.cut();
    await closed;
  }

  /** Cuts every connection. */
  cut(): void {
    for (const connection of this.connections.splice(0)) connection.socket.destroy();
  }
}
