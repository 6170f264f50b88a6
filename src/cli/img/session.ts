// SPDX-License-Identifier: MIT
/** Images that a command works on: opened as nodes of a graph that lives as long as the command. */
import { BlockdevOptions } from '../../../protocol/qapi/block-core-options.js';
import { ObjectOptions } from '../../../protocol/qapi/qom.js';
import type { JsonObject } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { BlockBackend } from '../../block/backend.js';
import {
  type DriverDefinition,
  type DriverOptions,
  REQ_FUA,
  type RequestFlags,
} from '../../block/block-driver.js';
import { Secrets } from '../../block/crypto/secrets.js';
import { registerDrivers } from '../../block/driver/all.js';
import { BlockGraph } from '../../block/graph.js';
import { filenameOptions } from '../../block/image-filename.js';
import type { BlockNode } from '../../block/node.js';
import { formatOf, openNode } from '../../block/open-node.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from '../../block/permissions.js';
import { ThrottleGroups } from '../../block/throttle/throttle-groups.js';
import { parseOption } from '../../daemon/schema-option.js';
import { addObject } from '../../qmp/commands/qom.js';
import { parseImageOptions } from './image-options.js';

/** How a command wants an image. */
export interface ImageRequest {
  /** A path, an NBD address, `json:{...}`, or with `imageOpts` a list of options. */
  readonly name: string;
  readonly imageOpts?: boolean | undefined;
  /** Driver; found out by the first bytes when absent. */
  readonly format?: string | undefined;
  readonly writable?: boolean;
  /** Open it even when somebody writes to it. */
  readonly forceShare?: boolean | undefined;
  readonly cache?: CacheMode;
  /** What the driver needs besides: its keys. */
  readonly driverOptions?: DriverOptions;
  /** Only what the image says of itself is wanted: it opens without its key. */
  readonly metadataOnly?: boolean;
  /** Its backing file is of no interest: it may even be missing. */
  readonly noBacking?: boolean;
}

/** What `-t` and `-T` say. */
export interface CacheMode {
  readonly direct: boolean;
  readonly noFlush: boolean;
  /** Each write is on stable storage before it counts as done. */
  readonly writethrough: boolean;
}

const CACHE_MODES: Readonly<Record<string, CacheMode>> = {
  none: { direct: true, noFlush: false, writethrough: false },
  writeback: { direct: false, noFlush: false, writethrough: false },
  writethrough: { direct: false, noFlush: false, writethrough: true },
  directsync: { direct: true, noFlush: false, writethrough: true },
  unsafe: { direct: false, noFlush: true, writethrough: false },
};

/** @throws BlockError DF_INVALID for a mode that there is not */
export function cacheMode(name: string): CacheMode {
  const mode = Object.hasOwn(CACHE_MODES, name) ? CACHE_MODES[name] : undefined;
  if (mode !== undefined) return mode;
  const known = Object.keys(CACHE_MODES).join(', ');
  throw new BlockError('DF_INVALID', `Invalid cache option: ${name}; there are ${known}`);
}

/** Writes as `-t writethrough` and `directsync` ask. */
class WritethroughBackend extends BlockBackend {
  override write(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    return super.write(offset, buffer, flags | REQ_FUA);
  }

  override writeZeroes(offset: number, length: number, flags = 0): MaybePromise<void> {
    return super.writeZeroes(offset, length, flags | REQ_FUA);
  }
}

export class ImageSession {
  readonly graph = new BlockGraph();
  readonly throttleGroups = new ThrottleGroups();
  readonly secrets = new Secrets();
  readonly #backends: BlockBackend[] = [];

  /** What went wrong when images were closed. */
  #lost: BlockError | undefined;

  constructor() {
    this.graph.observer.bitmapsLost = (node, error) => {
      this.#lost ??= new BlockError(
        'DF_IO',
        `Lost persistent bitmaps during inactivation of node '${node.name}'`,
        {},
        { cause: error },
      );
    };
    registerDrivers(this.graph, this.throttleGroups, this.secrets);
  }

  /**
   * Runs a command with a session of its own, which is closed whatever happens; that is part of it.
   * @param objects what each `--object` says
   */
  static async run<T>(
    objects: readonly string[] | undefined,
    work: (session: ImageSession) => Promise<T>,
  ): Promise<T> {
    const session = new ImageSession();
    let result: T;
    try {
      for (const object of objects ?? []) {
        await addObject(session, parseOption(ObjectOptions, object, 'qom-type'));
      }
      result = await work(session);
    } finally {
      await session.close();
    }
    if (session.#lost !== undefined) throw session.#lost;
    return result;
  }

  /** @throws BlockError that says which image and why */
  async open(request: ImageRequest): Promise<BlockBackend> {
    try {
      return await this.#attach(request, await this.#openNode(request));
    } catch (error) {
      throw couldNotOpen(request, error);
    }
  }

  /**
   * Opens what an image lies on, and not the image: for who looks at it from outside.
   * @throws BlockError that says which image and why
   */
  async openFile(
    request: ImageRequest,
  ): Promise<{ readonly format: string; readonly file: BlockBackend }> {
    try {
      const access = accessOptions(request);
      const given = await this.#describedOptions(request);
      const protocol = given ?? (await filenameOptions(this.graph.drivers, request.name));
      const format = String(
        given?.driver ?? request.format ?? (await this.#probe(protocol, access)),
      );
      const { checker } = this.#driver(format);
      // An image of a format that can't be looked into is opened as it is, to see that it is there.
      const inner =
        given !== undefined && checker !== undefined ? (given as DriverOptions).file : protocol;
      const options = validated({ ...(inner as DriverOptions), ...access });
      return { format, file: await this.#attach(request, await openNode(this.graph, options)) };
    } catch (error) {
      throw couldNotOpen(request, error);
    }
  }

  #driver(name: string): DriverDefinition {
    const { drivers } = this.graph;
    if (drivers.names.includes(name)) return drivers.get(name);
    throw new BlockError('DF_NOT_SUPPORTED', `Unknown driver '${name}'`);
  }

  async #attach(request: ImageRequest, node: BlockNode): Promise<BlockBackend> {
    const Backend = request.cache?.writethrough === true ? WritethroughBackend : BlockBackend;
    const backend = new Backend(`the image '${request.name}'`);
    const write = request.writable === true ? PERM_WRITE | PERM_RESIZE : 0;
    // What changes while it is looked at is no answer to anything, unless one asks for that.
    const shared = request.forceShare === true ? PERM_ALL : PERM_CONSISTENT_READ;
    const permissions = { taken: PERM_CONSISTENT_READ | write, shared };
    await this.graph.attach(backend, node, permissions);
    this.#backends.push(backend);
    return backend;
  }

  async close(): Promise<void> {
    for (const backend of this.#backends.splice(0)) await this.graph.detach(backend);
    await this.graph.closeAll();
  }

  async #openNode(request: ImageRequest): Promise<BlockNode> {
    const { metadataOnly = false } = request;
    const access = accessOptions(request);
    const given = await this.#describedOptions(request);
    if (given !== undefined) {
      const backing = this.#backingOptions(request, String(given.driver));
      return openNode(this.graph, { ...given, ...backing, ...access }, { metadataOnly });
    }
    const protocol = await filenameOptions(this.graph.drivers, request.name);
    const format = request.format ?? (await this.#probe(protocol, access));
    this.#driver(format);
    const file = { ...protocol, ...access };
    const backing = this.#backingOptions(request, format);
    const options = validated({ driver: format, file, ...backing, ...access });
    return openNode(this.graph, { ...options, ...request.driverOptions }, { metadataOnly });
  }

  /** For names that say everything: `json:{...}`, and options with --image-opts. */
  async #describedOptions({
    name,
    imageOpts,
    format,
  }: ImageRequest): Promise<DriverOptions | undefined> {
    if (imageOpts !== true && !name.startsWith('json:')) return undefined;
    if (format !== undefined) {
      throw new BlockError('DF_INVALID', '--image-opts and --format are mutually exclusive');
    }
    const text = imageOpts === true ? name : name.slice('json:'.length);
    return parseImageOptions(text, (filename) => filenameOptions(this.graph.drivers, filename));
  }

  #backingOptions({ noBacking }: ImageRequest, driver: string): { backing?: null } {
    const { children } = this.graph.drivers.get(driver);
    return noBacking === true && children.some(({ key }) => key === 'backing')
      ? { backing: null }
      : {};
  }

  async #probe(protocol: DriverOptions, access: JsonObject): Promise<string> {
    return formatOf(this.graph, validated({ ...protocol, ...access, 'read-only': true }));
  }
}

const couldNotOpen = ({ name }: ImageRequest, cause: unknown): BlockError =>
  new BlockError('DF_INVALID', `Could not open '${name}'`, {}, { cause });

const validated = (options: DriverOptions) =>
  validate(BlockdevOptions, options as unknown as JsonObject);

function accessOptions({ writable = false, forceShare, cache }: ImageRequest): JsonObject {
  return {
    'read-only': !writable,
    ...(forceShare === true ? { 'force-share': true } : {}),
    ...(writable ? { discard: 'unmap' } : {}),
    ...(cache !== undefined ? { cache: { direct: cache.direct, 'no-flush': cache.noFlush } } : {}),
  };
}
