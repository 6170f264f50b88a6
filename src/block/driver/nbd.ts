// SPDX-License-Identifier: MIT
/** A node over an export of an NBD server. @see qapi BlockdevOptionsNbd */

import { NbdUriError, parseNbdTarget } from '../../../protocol/nbd/uri.js';
import { errorText } from '../../base/error-text.js';
import { BlockError } from '../../base/errors.js';
import { MIB, NBD_SEND_FILE_MIN, NBD_UNIX_SEND_BUFFER } from '../../base/limits.js';
import { subjectLog } from '../../base/log.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { type NbdAddress, nbdFilename } from '../../nbd/client/address.js';
import { NbdClient } from '../../nbd/client/client.js';
import type { NbdClientEvent } from '../../nbd/client/pool.js';
import type { NbdExtent } from '../../nbd/client/request.js';
import { FilePayload } from '../../sys/send-file.js';
import { setSendBuffer } from '../../sys/socket-buffer.js';
import {
  type BlockDriver,
  type BlockLimits,
  type DriverDefinition,
  type DriverFeatures,
  type DriverOptions,
  type Extent,
  type OpenContext,
  REQ_FUA,
  REQ_LEND,
  REQ_LEND_ONCE,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_PREFETCH,
  type RequestFlags,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_OFFSET_VALID,
  STATUS_ZERO,
} from '../block-driver.js';
import type { FileRange } from '../file-range.js';

const BASE_ALLOCATION = 'base:allocation';
const ALLOCATION_DEPTH = 'qemu:allocation-depth';
/** base:allocation. @see proto.md "`base:allocation` metadata context" */
const STATE_HOLE = 1;
const STATE_ZERO = 2;
/** Alignment towards servers that are too old to tell theirs, bytes. */
const OLD_SERVER_ALIGNMENT = 512;
/** Longest zeroing or discard in one go, bytes; the client splits further where the server wants. */
const EFFECT_MAX = 1024 * MIB;

/** Nothing is copied, so longer requests push nothing out of the processor's caches, bytes. */
const PASS_LENGTH = 1 * MIB;

export class NbdDriver implements BlockDriver {
  readonly name = 'nbd';
  readonly features: DriverFeatures;
  readonly limits: BlockLimits;
  readonly readOnly: boolean;
  readonly filename: string;
  readonly passLength: number | undefined;
  readonly #client: NbdClient;
  /** The context that blockStatus asks; undefined: everything is data. */
  readonly #context: string | undefined;

  constructor(
    client: NbdClient,
    options: { filename: string; context: string; readOnly: boolean },
  ) {
    const { fua, writeZeroes, trim, multiConn } = client.capabilities;
    this.#client = client;
    this.filename = options.filename;
    this.readOnly = options.readOnly;
    this.#context = client.contexts.includes(options.context) ? options.context : undefined;
    this.features = { fua, writeZeroes, discard: trim, backing: false, multiConn };
    this.limits = limitsOf(client);
    this.passLength = client.takesSources ? Math.min(PASS_LENGTH, client.payloadMax) : undefined;
  }

  get size(): number {
    return this.#client.size;
  }

  get roundTripMs(): number | undefined {
    return this.#client.roundTripMs;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    const wantsCache = (flags & REQ_PREFETCH) !== 0 && this.#client.capabilities.cache;
    if (wantsCache) return this.#client.cache(offset, buffer.byteLength);
    return this.#client.read(offset, buffer);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    return this.#client.write(offset, buffer, { fua: (flags & REQ_FUA) !== 0 });
  }

  /** What the page cache has goes from there into the socket; the server's answer says that it has it. */
  writeFrom(offset: number, range: FileRange, flags: RequestFlags): MaybePromise<number> {
    const once = (flags & REQ_LEND) === 0;
    const { length } = range;
    if (length < NBD_SEND_FILE_MIN || !this.#client.takesSources) return 0;
    if (once && ((flags & REQ_LEND_ONCE) === 0 || !this.#client.failsWhenLost)) return 0;
    const payload = FilePayload.of(range.file, range.offset, length);
    if (payload === undefined) return 0;
    const fua = (flags & REQ_FUA) !== 0;
    return this.#client.writeFrom(offset, payload, { fua, once }).then(() => length);
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): Promise<void> {
    return this.#client.writeZeroes(offset, length, {
      fua: (flags & REQ_FUA) !== 0,
      noHole: (flags & REQ_MAY_UNMAP) === 0,
      fastZero: (flags & REQ_NO_FALLBACK) !== 0,
    });
  }

  discard(offset: number, length: number): MaybePromise<void> {
    if (!this.features.discard) return;
    return this.#client.trim(offset, length);
  }

  flush(): Promise<void> {
    return this.#client.flush();
  }

  async blockStatus(offset: number, length: number): Promise<Extent> {
    const allData = STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    if (this.#context === undefined) return { length, flags: allData, hostOffset: offset };
    const extents = await this.#client.blockStatus(offset, length, {
      context: this.#context,
      reqOne: true,
    });
    const [first] = extents;
    if (first === undefined) return { length, flags: allData, hostOffset: offset };
    const { requestAlignment } = this.limits;
    const extent = aligned(first, requestAlignment, length);
    return { ...extent, flags: this.#statusFlags(extent.flags), hostOffset: offset };
  }

  cancelInFlight(): void {
    this.#client.cancelWaiting();
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  /** Any context is read as if it were base:allocation; so a dirty area shows as a hole (QEMU does so, too). */
  #statusFlags(flags: number): number {
    const state = this.#context === ALLOCATION_DEPTH ? Math.min(flags, 2) : flags;
    return (
      STATUS_ALLOCATED |
      STATUS_OFFSET_VALID |
      ((state & STATE_HOLE) !== 0 ? 0 : STATUS_DATA) |
      ((state & STATE_ZERO) !== 0 ? STATUS_ZERO : 0)
    );
  }
}

/** Extents of a server that does not keep to its own block size: shortened, or all of it data. */
function aligned(extent: NbdExtent, alignment: number, length: number): NbdExtent {
  if (extent.length % alignment === 0) return extent;
  if (extent.length > alignment) {
    return { length: extent.length - (extent.length % alignment), flags: extent.flags };
  }
  return { length: Math.min(alignment, length), flags: 0 };
}

function limitsOf(client: NbdClient): BlockLimits {
  const { blockSizes, size, payloadMax } = client;
  const tellsBytes = size % OLD_SERVER_ALIGNMENT !== 0 || client.contexts.length > 0;
  const assumed = tellsBytes ? 1 : OLD_SERVER_ALIGNMENT;
  const requestAlignment = blockSizes.advertised ? blockSizes.minimum : assumed;
  return {
    requestAlignment,
    memoryAlignment: 1,
    maxTransfer: payloadMax,
    optimalTransfer: blockSizes.advertised ? blockSizes.preferred : 0,
    maxWriteZeroes: EFFECT_MAX,
    writeZeroesAlignment: requestAlignment,
    maxDiscard: EFFECT_MAX,
    discardAlignment: requestAlignment,
    compressedUnit: 0,
  };
}

/** The members of BlockdevOptionsNbd that the schema lets through. */
interface NbdOptions {
  readonly server: Readonly<Record<string, unknown>>;
  readonly export?: string;
  readonly 'tls-hostname'?: string;
  readonly 'x-dirty-bitmap'?: string;
  readonly 'reconnect-delay'?: number;
  readonly 'open-timeout'?: number;
  readonly connections?: number;
}

export const nbdDefinition: DriverDefinition = {
  name: 'nbd',
  kind: 'protocol',
  children: [],
  open: openNbd,
  fromFilename: (name) => (NBD_NAME.test(name) ? optionsOfName(name) : undefined),
};

/** File names that mean an export. */
const NBD_NAME = /^(nbds?|wss?|nbds?\+(tcp|unix)):/i;

/** @throws BlockError DF_INVALID for a name that is wrong, DF_NOT_SUPPORTED for one that needs TLS */
function optionsOfName(name: string): DriverOptions {
  const { address, exportName, tls } = parseName(name);
  if (tls) throw new BlockError('DF_NOT_SUPPORTED', `The driver nbd has no TLS: '${name}'`);
  if (address.type !== 'inet') return { server: { ...address }, export: exportName };
  const { host, port, family } = address;
  const only = family !== undefined ? { [`ipv${family}`]: true } : {};
  return { server: { type: 'inet', host, port: String(port), ...only }, export: exportName };
}

function parseName(name: string): ReturnType<typeof parseNbdTarget> {
  try {
    return parseNbdTarget(name);
  } catch (error) {
    if (!(error instanceof NbdUriError)) throw error;
    throw new BlockError('DF_INVALID', error.message);
  }
}

async function openNbd(given: DriverOptions, context: OpenContext): Promise<BlockDriver> {
  const options = given as unknown as NbdOptions;
  const address = parseServer(options.server);
  checkTlsHostname(options['tls-hostname']);
  const exportName = options.export ?? '';
  const statusContext = options['x-dirty-bitmap'] ?? BASE_ALLOCATION;
  const { connections } = options;
  const client = await NbdClient.connect({
    address,
    exportName,
    metaContexts: [statusContext],
    reconnectDelaySeconds: options['reconnect-delay'] ?? 0,
    openTimeoutSeconds: options['open-timeout'] ?? 0,
    ...(connections === undefined ? {} : { connections }),
    signal: context.signal,
    onEvent: (event) => tell(context.nodeName, exportName, event),
    tuneUnixSocket: (fd) => setSendBuffer(fd, NBD_UNIX_SEND_BUFFER),
  });
  try {
    const readOnly = checkAccess(client, context);
    checkContext(client, options['x-dirty-bitmap']);
    const filename = nbdFilename(address, exportName);
    return new NbdDriver(client, { filename, context: statusContext, readOnly });
  } catch (error) {
    await client.close();
    throw error;
  }
}

/** The loss for good of a server is told where nobody may be asking for data just then. */
function tell(node: string, exportName: string, event: NbdClientEvent): void {
  if (event.type !== 'failed') return;
  const fields = { event: 'nbd.client.failed', export: exportName };
  subjectLog({ node }).warn(fields, errorText(event.error));
}

/** True when the export can't be written and that is fine. */
function checkAccess(client: NbdClient, context: OpenContext): boolean {
  if (!client.capabilities.readOnly || context.readOnly) return client.capabilities.readOnly;
  if (context.autoReadOnly) return true;
  throw new BlockError('DF_READ_ONLY', 'request for write access denied');
}

/** Managers pass an empty name where there is no TLS, meaning that nothing is to be checked. */
function checkTlsHostname(name: string | undefined): void {
  if (name === undefined || name === '') return;
  throw new BlockError('DF_NOT_SUPPORTED', `tls-hostname '${name}' without TLS checks nothing`);
}

function checkContext(client: NbdClient, wanted: string | undefined): void {
  if (wanted === undefined || client.contexts.includes(wanted)) return;
  throw new BlockError('DF_NOT_FOUND', `requested x-dirty-bitmap ${wanted} not found`);
}

/** QAPI NbdServerAddress. @throws BlockError DF_INVALID for a port, descriptor or URL that is none */
function parseServer(server: NbdOptions['server']): NbdAddress {
  if (server.type === 'unix') return { type: 'unix', path: String(server.path) };
  if (server.type === 'websocket') return { type: 'websocket', url: checkedUrl(server.url) };
  if (server.type === 'fd') return { type: 'fd', fd: parseNumber(server.str, 'fd', 1 << 20) };
  const port = parseNumber(server.port, 'port', 65_535);
  const host = String(server.host);
  const { ipv4, ipv6 } = server;
  if (ipv4 === false && ipv6 === false) {
    throw new BlockError('DF_INVALID', 'neither IPv4 nor IPv6 may be used');
  }
  if (ipv6 === false || (ipv4 === true && ipv6 !== true)) {
    return { type: 'inet', host, port, family: 4 };
  }
  if (ipv4 === false || (ipv6 === true && ipv4 !== true)) {
    return { type: 'inet', host, port, family: 6 };
  }
  return { type: 'inet', host, port };
}

/** @throws BlockError DF_INVALID for what is no WebSocket URL, DF_NOT_SUPPORTED for wss:// */
function checkedUrl(given: unknown): string {
  const url = String(given);
  const { address, tls } = parseName(url);
  if (tls) throw new BlockError('DF_NOT_SUPPORTED', `The driver nbd has no TLS: '${url}'`);
  if (/[?&;]export=/.test(url)) {
    throw new BlockError('DF_INVALID', `'${url}': the option 'export' names the export, not 'url'`);
  }
  if (address.type === 'websocket') return url;
  throw new BlockError('DF_INVALID', `'${url}' is no WebSocket URL: those begin with ws://`);
}

function parseNumber(text: unknown, what: string, max: number): number {
  const value = typeof text === 'string' && /^\d{1,7}$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isNaN(value) || value > max) {
    throw new BlockError('DF_INVALID', `'${String(text)}' is not a valid ${what} number`);
  }
  return value;
}
