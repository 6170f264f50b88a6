// SPDX-License-Identifier: MIT
/** An export of an NBD server, as an object. Usable without the rest of diskferry. */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_META_BASE_ALLOCATION,
} from '../../../protocol/nbd/constants.js';
import { alignDown } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import {
  NBD_CLIENT_CONNECTIONS_MAX,
  NBD_CLIENT_EFFECT_MAX,
  NBD_CONNECT_TIMEOUT_MS,
  NBD_PAYLOAD_MAX,
  NBD_STALL_TIMEOUT_MS,
  NBD_STRING_MAX,
} from '../../base/limits.js';
import { canConnectAgain, describeNbdExport, type NbdAddress } from './address.js';
import { capabilitiesOf, type NbdCapabilities } from './capabilities.js';
import { openOptionPhase } from './connection.js';
import { listExports, listMetaContexts, type NbdListedExport } from './list.js';
import type { NbdBlockSizes } from './negotiate.js';
import { type PayloadSource, slicePayload } from './payload.js';
import { asBlockError, ConnectionPool, type NbdClientEvent } from './pool.js';
import { ClientRequest, type NbdExtent, type RequestFields } from './request.js';

export interface NbdClientOptions {
  readonly address: NbdAddress;
  /** '' (the default) is the server's default export. */
  readonly exportName?: string;
  /** Wanted meta contexts. Default: `base:allocation` alone. */
  readonly metaContexts?: readonly string[];
  /** Connections to open where the server allows several. Default: as many as pay off, up to 16. */
  readonly connections?: number;
  /** How long requests wait for a lost server, seconds. Default 0: they fail at once. */
  readonly reconnectDelaySeconds?: number;
  /** How long to try the first connection again and again, seconds. Default 0: once. */
  readonly openTimeoutSeconds?: number;
  /** For one attempt to connect, with its negotiation, milliseconds. Default 10 s. */
  readonly connectTimeoutMs?: number;
  /** A server silent for so long while requests wait counts as lost; 0: never. Default 2 min. */
  readonly stallTimeoutMs?: number;
  /** Gives up `connect`. */
  readonly signal?: AbortSignal;
  /**
   * Called for each new connection to a UNIX socket, whose send buffer does not grow by itself: a
   * request that does not fit costs a wake-up for each part.
   */
  readonly tuneUnixSocket?: (fd: number) => void;
  /** Told of losses and returns of the server. */
  readonly onEvent?: (event: NbdClientEvent) => void;
}

export type NbdListOptions = Pick<NbdClientOptions, 'address' | 'connectTimeoutMs' | 'signal'>;

/**
 * Offsets and lengths are bytes, multiples of `blockSizes.minimum`, within `size`. Any number of
 * requests may be under way together; they end in any order, and those that overlap do so in any
 * order, too. Longer requests than the server takes are split.
 *
 * @example
 * const client = await NbdClient.connect({ address: { type: 'inet', host: 'a', port: 10809 } });
 * const sector = Buffer.alloc(512);
 * await client.read(0, sector);
 * await client.close();
 */
export class NbdClient {
  /** Bytes. */
  readonly size: number;
  /** NBD_FLAG_* as the server sent them. */
  readonly transmissionFlags: number;
  readonly capabilities: NbdCapabilities;
  readonly blockSizes: NbdBlockSizes;
  /** Form of the server's replies. */
  readonly replies: 'simple' | 'structured' | 'extended';
  /** Meta contexts that `blockStatus` can ask for. */
  readonly contexts: readonly string[];
  readonly description: string;
  readonly #pool: ConnectionPool;
  /** Longest READ or WRITE. */
  readonly #payloadMax: number;
  /** Longest request without a payload; falls when the server finds one too large. */
  #effectMax: number;

  /**
   * Connects and negotiates as much as the server can.
   * @throws BlockError DF_DISCONNECTED, DF_TIMEOUT: no server; DF_NOT_FOUND: no such export;
   *   DF_PROTOCOL: not an NBD server that keeps to the rules; DF_INVALID: options that can't be
   */
  static async connect(options: NbdClientOptions): Promise<NbdClient> {
    const exportName = checkedName(options.exportName ?? '', 'export name');
    const metaContexts = options.metaContexts ?? [NBD_META_BASE_ALLOCATION];
    for (const context of metaContexts) checkedName(context, 'meta context');
    const { connections } = options;
    if (connections !== undefined && !(Number.isInteger(connections) && connections >= 1)) {
      throw new BlockError('DF_INVALID', `${connections} is no number of connections`);
    }
    const name = describeNbdExport(options.address, exportName);
    try {
      const pool = await ConnectionPool.open(
        {
          address: options.address,
          exportName,
          metaContexts,
          name,
          timeoutMs: options.connectTimeoutMs ?? NBD_CONNECT_TIMEOUT_MS,
          connectionsMax: Math.min(connections ?? NBD_CLIENT_CONNECTIONS_MAX, 256),
          eager: connections !== undefined,
          reconnectDelayMs: (options.reconnectDelaySeconds ?? 0) * 1000,
          canReconnect: canConnectAgain(options.address),
          openTimeoutMs: canConnectAgain(options.address)
            ? (options.openTimeoutSeconds ?? 0) * 1000
            : 0,
          stallTimeoutMs: options.stallTimeoutMs ?? NBD_STALL_TIMEOUT_MS,
          tuneUnixSocket: options.tuneUnixSocket,
          onEvent: options.onEvent ?? (() => {}),
        },
        options.signal ?? new AbortController().signal,
      );
      return new NbdClient(pool);
    } catch (error) {
      throw asBlockError(error);
    }
  }

  /** The server's exports. @throws BlockError DF_NOT_SUPPORTED, DF_ACCESS: it does not tell */
  static async list(options: NbdListOptions): Promise<NbdListedExport[]> {
    const { result } = await openOptionPhase(phaseOptions(options), listExports);
    return result;
  }

  /** The meta contexts of an export, as the server lists them (wildcards among them, perhaps). */
  static async listMetaContexts(options: NbdListOptions, exportName: string): Promise<string[]> {
    const name = checkedName(exportName, 'export name');
    const { result } = await openOptionPhase(phaseOptions(options), (stream) =>
      listMetaContexts(stream, name),
    );
    return result;
  }

  private constructor(pool: ConnectionPool) {
    const { session } = pool;
    this.#pool = pool;
    this.size = session.size;
    this.transmissionFlags = session.transmissionFlags;
    this.capabilities = capabilitiesOf(session.transmissionFlags);
    this.blockSizes = session.blockSizes;
    this.replies = session.replies;
    this.contexts = [...session.contexts.keys()];
    this.description = session.description;
    const { minimum, maximum } = session.blockSizes;
    this.#payloadMax = alignDown(Math.min(maximum, NBD_PAYLOAD_MAX), minimum);
    this.#effectMax = NBD_CLIENT_EFFECT_MAX;
  }

  /** Connections that stand now; 0 while the server is lost. */
  get connectionCount(): number {
    return this.#pool.connectionCount;
  }

  /** Shortest time from an option to its answer in the first handshake, ms; undefined: none was sent. */
  get roundTripMs(): number | undefined {
    return this.#pool.session.roundTripMs;
  }

  /** Longest payload of one request on the wire, bytes. */
  get payloadMax(): number {
    return this.#payloadMax;
  }

  /**
   * Reads `buffer.byteLength` bytes.
   * @param buffer the client's until the promise settles; after an error it may hold anything
   * @param options `df`: the server must not fragment its reply
   */
  read(offset: number, buffer: Buffer, options: { readonly df?: boolean } = {}): Promise<void> {
    const flags = options.df ? NBD_CMD_FLAG_DF : 0;
    if (options.df && !this.capabilities.df) return this.#unsupported('the DF flag');
    return this.#transfer({ command: NBD_CMD_READ, flags, offset, length: 0, buffer });
  }

  /**
   * Writes all of `buffer`, which stays untouched until the promise settles.
   * @param options `fua`: on stable storage before it completes
   */
  write(offset: number, buffer: Buffer, options: { readonly fua?: boolean } = {}): Promise<void> {
    const refused = this.#refuseChange(options.fua);
    if (refused !== undefined) return Promise.reject(refused);
    const flags = options.fua ? NBD_CMD_FLAG_FUA : 0;
    return this.#transfer({ command: NBD_CMD_WRITE, flags, offset, length: 0, buffer });
  }

  /** True where `writeFrom` spares anything: over UNIX sockets. */
  get takesSources(): boolean {
    return this.#pool.takesSources;
  }

  /** True when requests fail as soon as the server is lost, instead of waiting for its return. */
  get failsWhenLost(): boolean {
    return this.#pool.failsWhenLost;
  }

  /**
   * As `write`, of data that need not pass through memory. The source is used until the promise settles.
   * The server has all of it when this succeeds. After a loss of the connection it may still get, and
   * write, what it was sent: what lies in the source by then, perhaps.
   * @param options `once`: never sent twice; fails with DF_DISCONNECTED when the connection is lost
   * @throws BlockError; what reading the source throws, when that fails: the range holds anything then
   */
  writeFrom(
    offset: number,
    source: PayloadSource,
    options: { readonly fua?: boolean; readonly once?: boolean } = {},
  ): Promise<void> {
    const refused = this.#refuseChange(options.fua);
    if (refused !== undefined) return Promise.reject(refused);
    const flags = options.fua ? NBD_CMD_FLAG_FUA : 0;
    const { once } = options;
    return this.#transfer({ command: NBD_CMD_WRITE, flags, offset, length: 0, source, once });
  }

  /** All writes that completed before, on whatever connection, are on stable storage afterwards. */
  flush(): Promise<void> {
    // A server without FLUSH has no cache to speak of: what completed is all there is to have.
    if (!this.capabilities.flush) return Promise.resolve();
    return this.#run({ command: NBD_CMD_FLUSH, flags: 0, offset: 0, length: 0 });
  }

  /** The range's content is no longer needed. */
  trim(offset: number, length: number, options: { readonly fua?: boolean } = {}): Promise<void> {
    if (!this.capabilities.trim) return this.#unsupported('NBD_CMD_TRIM');
    const refused = this.#refuseChange(options.fua);
    if (refused !== undefined) return Promise.reject(refused);
    const flags = options.fua ? NBD_CMD_FLAG_FUA : 0;
    return this.#effect({ command: NBD_CMD_TRIM, flags, offset, length });
  }

  /**
   * Makes the range read as zeroes.
   * @param options `noHole`: storage stays allocated; `fastZero`: fail with DF_NOT_SUPPORTED rather
   *   than be no faster than a write
   */
  writeZeroes(
    offset: number,
    length: number,
    options: {
      readonly fua?: boolean;
      readonly noHole?: boolean;
      readonly fastZero?: boolean;
    } = {},
  ): Promise<void> {
    if (!this.capabilities.writeZeroes) return this.#unsupported('NBD_CMD_WRITE_ZEROES');
    if (options.fastZero && !this.capabilities.fastZero) {
      return this.#unsupported('the FAST_ZERO flag');
    }
    const refused = this.#refuseChange(options.fua);
    if (refused !== undefined) return Promise.reject(refused);
    const flags =
      (options.fua ? NBD_CMD_FLAG_FUA : 0) |
      (options.noHole ? NBD_CMD_FLAG_NO_HOLE : 0) |
      (options.fastZero ? NBD_CMD_FLAG_FAST_ZERO : 0);
    return this.#effect({ command: NBD_CMD_WRITE_ZEROES, flags, offset, length });
  }

  /** Asks the server to have the range at hand. */
  cache(offset: number, length: number): Promise<void> {
    if (!this.capabilities.cache) return this.#unsupported('NBD_CMD_CACHE');
    return this.#effect({ command: NBD_CMD_CACHE, flags: 0, offset, length });
  }

  /**
   * Status of a prefix of the range in one meta context; at least one extent, in order.
   * @param options `context`: default `base:allocation`; `reqOne`: one extent is enough
   * @throws BlockError DF_NOT_SUPPORTED: the context was not negotiated
   */
  async blockStatus(
    offset: number,
    length: number,
    options: { readonly context?: string; readonly reqOne?: boolean } = {},
  ): Promise<readonly NbdExtent[]> {
    const context = options.context ?? NBD_META_BASE_ALLOCATION;
    const extents = (await this.blockStatuses(offset, length, options)).get(context);
    if (extents !== undefined) return extents;
    throw new BlockError('DF_NOT_SUPPORTED', `the NBD server offers no meta context '${context}'`);
  }

  /** Status of prefixes of the range in every negotiated context, by the context's name. */
  async blockStatuses(
    offset: number,
    length: number,
    options: { readonly reqOne?: boolean } = {},
  ): Promise<ReadonlyMap<string, readonly NbdExtent[]>> {
    if (this.contexts.length === 0) return new Map();
    const refused = this.#refuseRange(offset, length);
    if (refused !== undefined) throw refused;
    if (length === 0) throw new BlockError('DF_INVALID', 'status of 0 bytes was asked for');
    const fields: RequestFields = {
      command: NBD_CMD_BLOCK_STATUS,
      flags: options.reqOne ? NBD_CMD_FLAG_REQ_ONE : 0,
      offset,
      length: Math.min(length, NBD_CLIENT_EFFECT_MAX),
    };
    return await new Promise((resolve, reject) => {
      const request = new ClientRequest(fields, (error) => {
        if (error === undefined) resolve(request.statuses ?? new Map());
        else reject(error);
      });
      this.#pool.submit(request);
    });
  }

  /**
   * Who made the requests has given up: those that wait for a lost server fail now instead of at the
   * end of the delay, and a server counts as lost that has been silent for 2 s, now or later on.
   */
  cancelWaiting(): void {
    this.#pool.stopWaiting();
  }

  /** Ends at once; requests under way fail with DF_CANCELLED. Flush first what has to last. */
  async close(): Promise<void> {
    this.#pool.close(new BlockError('DF_CANCELLED', 'the NBD client was closed'));
  }

  #run(fields: RequestFields): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#pool.submit(
        new ClientRequest(fields, (error) => {
          if (error === undefined) resolve();
          else reject(error);
        }),
      );
    });
  }

  /** READ or WRITE of a whole buffer, or source. */
  #transfer(fields: RequestFields): Promise<void> {
    const { offset, buffer, source } = fields;
    const length = source?.length ?? buffer?.byteLength ?? 0;
    const refused = this.#refuseRange(offset, length);
    if (refused !== undefined) return Promise.reject(refused);
    if (length === 0) return Promise.resolve();
    if (length <= this.#payloadMax) return this.#run({ ...fields, length });
    const parts: Promise<void>[] = [];
    for (let at = 0; at < length; at += this.#payloadMax) {
      const count = Math.min(this.#payloadMax, length - at);
      const data =
        source === undefined
          ? { buffer: buffer?.subarray(at, at + count) }
          : { source: slicePayload(source, at, count) };
      parts.push(this.#run({ ...fields, ...data, offset: offset + at, length: count }));
    }
    return allEnded(parts);
  }

  /** A request that moves no payload, in as large pieces as the server takes. */
  async #effect(fields: RequestFields): Promise<void> {
    const refused = this.#refuseRange(fields.offset, fields.length);
    if (refused !== undefined) throw refused;
    const end = fields.offset + fields.length;
    for (let offset = fields.offset; offset < end; ) {
      const length = Math.min(this.#effectMax, end - offset);
      try {
        await this.#run({ ...fields, offset, length });
        offset += length;
      } catch (error) {
        // A server may find too large what has no payload. @see proto.md "Size constraints"
        if (length <= this.#payloadMax || !isTooLarge(error)) throw error;
        this.#effectMax = this.#payloadMax;
      }
    }
  }

  #refuseChange(fua: boolean | undefined): BlockError | undefined {
    if (this.capabilities.readOnly) {
      return new BlockError('DF_READ_ONLY', 'the NBD export is read-only');
    }
    if (fua && !this.capabilities.fua) {
      return new BlockError('DF_NOT_SUPPORTED', 'the NBD server does not support the FUA flag');
    }
    return undefined;
  }

  #refuseRange(offset: number, length: number): BlockError | undefined {
    const valid = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
    if (!valid || offset < 0 || length < 0 || offset + length > this.size) {
      const text = `${length} bytes at ${offset} reach past the export's ${this.size} bytes`;
      return new BlockError('DF_OUT_OF_RANGE', text, { offset, length });
    }
    const { minimum } = this.blockSizes;
    if (offset % minimum !== 0 || length % minimum !== 0) {
      const text = `${length} bytes at ${offset} are not in whole blocks of ${minimum} bytes`;
      return new BlockError('DF_INVALID', text, { offset, length });
    }
    return undefined;
  }

  #unsupported(what: string): Promise<never> {
    return Promise.reject(
      new BlockError('DF_NOT_SUPPORTED', `the NBD server does not support ${what}`),
    );
  }
}

/** Waits for all, so that no part touches the buffer any more, then fails with the first error. */
async function allEnded(parts: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(parts)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

function isTooLarge(error: unknown): boolean {
  if (!(error instanceof BlockError)) return false;
  return error.code === 'DF_TOO_LARGE' || error.code === 'DF_INVALID';
}

function checkedName(name: string, what: string): string {
  const length = Buffer.byteLength(name, 'utf8');
  if (length > NBD_STRING_MAX || name.includes('\0')) {
    throw new BlockError(
      'DF_INVALID',
      `${what} too long to send to server: ${length} bytes, at most ${NBD_STRING_MAX} without NUL`,
    );
  }
  return name;
}

function phaseOptions(options: NbdListOptions) {
  return {
    address: options.address,
    timeoutMs: options.connectTimeoutMs ?? NBD_CONNECT_TIMEOUT_MS,
    signal: options.signal ?? new AbortController().signal,
  };
}
