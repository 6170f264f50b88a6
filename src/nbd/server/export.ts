// SPDX-License-Identifier: MIT
/** A node under a name, and the registry of all such. */
import { BlockError } from '../../base/errors.js';
import { NBD_STRING_MAX } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import { TrafficCounters } from './counters.js';

/** What an export needs of its node. The backend stays its owner's; close it in `onClosed`. */
export type ExportBackend = Pick<
  BlockBackend,
  | 'size'
  | 'limits'
  | 'readOnly'
  | 'read'
  | 'write'
  | 'writeZeroes'
  | 'discard'
  | 'flush'
  | 'blockStatus'
> &
  Partial<Pick<BlockBackend, 'send'>>;

/** A dirty bitmap as `qemu:dirty-bitmap:NAME` shows it. */
export interface DirtyExtents {
  /** The run of equal state that starts at `offset`, at most `limit` bytes and at least 1. */
  nextExtent(offset: number, limit: number): { length: number; dirty: boolean };
}

export interface ExportOptions {
  readonly id: string;
  /** What clients ask for; '' is the default export. At most 4096 bytes of UTF-8. */
  readonly name: string;
  /** Name of the node when it was added. */
  readonly nodeName: string;
  /** Name of the node that it has now: the graph may have moved it. Undefined: none any more. */
  readonly nodeNow?: () => string | undefined;
  readonly description?: string;
  readonly backend: ExportBackend;
  readonly writable: boolean;
  /** Every write reaches stable storage before its reply. */
  readonly writethrough?: boolean;
  /** Offer `qemu:allocation-depth`. */
  readonly allocationDepth?: boolean;
  readonly bitmaps?: ReadonlyMap<string, DirtyExtents>;
  /** The export is gone and no request of it is in flight any more. */
  readonly onClosed?: (closed: NbdExport) => void;
}

/** How an export is removed while clients use it. */
export type RemoveMode = 'safe' | 'hard' | 'hide';

/** A connection, as its export sees it. */
export interface ExportClient {
  /** Drops the connection at once. Requests in flight end by themselves. */
  drop(reason: string): void;
}

export class NbdExport {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly backend: ExportBackend;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly allocationDepth: boolean;
  readonly bitmaps: ReadonlyMap<string, DirtyExtents>;
  /** Of all clients, gone ones too. */
  readonly counters = new TrafficCounters();
  /** Resolves once the export is gone and nothing of it is in flight. */
  readonly closed: Promise<void>;
  readonly #nodeName: () => string;
  readonly #clients = new Set<ExportClient>();
  #state: 'offered' | 'hidden' | 'leaving' | 'closed' = 'offered';
  #resolveClosed: () => void = () => undefined;
  readonly #onClosed: ((closed: NbdExport) => void) | undefined;

  constructor(options: ExportOptions) {
    this.id = options.id;
    this.name = options.name;
    this.#nodeName = () => options.nodeNow?.() ?? options.nodeName;
    this.description = options.description ?? '';
    this.backend = options.backend;
    this.writable = options.writable;
    this.writethrough = options.writethrough ?? false;
    this.allocationDepth = options.allocationDepth ?? false;
    this.bitmaps = options.bitmaps ?? new Map();
    this.#onClosed = options.onClosed;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  /** Name of the node that is exported. */
  get nodeName(): string {
    return this.#nodeName();
  }

  get clientCount(): number {
    return this.#clients.size;
  }

  /** True when new clients can't choose it any more. */
  get shuttingDown(): boolean {
    return this.#state !== 'offered';
  }

  /** True while those who had it when it was hidden may keep it. */
  get hidden(): boolean {
    return this.#state === 'hidden';
  }

  /** A client enters the transmission phase. */
  enter(client: ExportClient): void {
    this.#clients.add(client);
  }

  /** A client is gone, with all its requests. */
  leave(client: ExportClient): void {
    this.#clients.delete(client);
    if (this.shuttingDown && this.#clients.size === 0) this.#close();
  }

  /** Takes the export away from new clients; it goes with the last of those that have it. */
  hide(): void {
    if (this.#state === 'offered') this.#state = 'hidden';
    if (this.#clients.size === 0) this.#close();
  }

  /** Takes the export away from new clients; `drop` also from those that have it. */
  retire(options: { drop: boolean }): void {
    if (this.#state === 'closed') return;
    this.#state = 'leaving';
    if (options.drop) {
      for (const client of [...this.#clients]) client.drop(`export '${this.id}' is removed`);
    }
    if (this.#clients.size === 0) this.#close();
  }

  #close(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#resolveClosed();
    this.#onClosed?.(this);
  }
}

/** Exports by id and by name. Ids are unique among all, names among those on offer. */
export class ExportRegistry {
  readonly #byId = new Map<string, NbdExport>();

  /**
   * @throws BlockError `DF_EXISTS`: id or name is taken; `DF_INVALID`: a text is too long;
   *   `DF_READ_ONLY`: writable asked of a read-only node
   */
  add(options: ExportOptions): NbdExport {
    checkText('Export name', options.name);
    checkText('Export description', options.description ?? '');
    for (const bitmap of options.bitmaps?.keys() ?? []) {
      checkText('Bitmap context', `qemu:dirty-bitmap:${bitmap}`);
    }
    if (this.#byId.has(options.id)) {
      throw new BlockError('DF_EXISTS', `Block export id '${options.id}' is already in use`);
    }
    if (this.find(options.name) !== undefined) {
      throw new BlockError('DF_EXISTS', `NBD server already has export named '${options.name}'`);
    }
    if (options.writable && options.backend.readOnly) {
      throw new BlockError('DF_READ_ONLY', `Node '${options.nodeName}' is read-only`);
    }
    const added = new NbdExport({
      ...options,
      onClosed: (closed) => {
        this.#byId.delete(closed.id);
        options.onClosed?.(closed);
      },
    });
    this.#byId.set(added.id, added);
    return added;
  }

  /** The export that new clients get under `name`. */
  find(name: string): NbdExport | undefined {
    for (const candidate of this.#byId.values()) {
      if (candidate.name === name && !candidate.shuttingDown) return candidate;
    }
    return undefined;
  }

  /**
   * The export that somebody means who removes `name`: the one on offer, else the one that was
   * hidden first, as its name may have gone to others since.
   */
  findToRemove(name: string): NbdExport | undefined {
    return this.find(name) ?? this.all().find((candidate) => candidate.name === name);
  }

  /** @throws BlockError `DF_NOT_FOUND` */
  get(id: string): NbdExport {
    const found = this.#byId.get(id);
    if (found === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Export '${id}' is not found`);
    }
    return found;
  }

  has(id: string): boolean {
    return this.#byId.has(id);
  }

  /** In order of addition; those that are leaving too. */
  all(): NbdExport[] {
    return [...this.#byId.values()];
  }

  /** What new clients may see. */
  offered(): NbdExport[] {
    return this.all().filter((candidate) => !candidate.shuttingDown);
  }

  /**
   * `safe` refuses while clients use the export, `hard` drops them, `hide` keeps it for those who
   * have it. `closed` of the export tells when it is gone. A hidden one can still be removed.
   * @throws BlockError `DF_NOT_FOUND`, `DF_IN_USE`
   */
  remove(id: string, mode: RemoveMode = 'safe'): NbdExport {
    const found = this.get(id);
    if (found.hidden && mode === 'hide') {
      throw new BlockError('DF_IN_USE', `Export '${id}' is already hidden`);
    }
    if (found.shuttingDown && !found.hidden && mode !== 'hard') {
      throw new BlockError('DF_IN_USE', `Export '${id}' is already shutting down`);
    }
    if (mode === 'safe' && found.clientCount > 0) {
      throw new BlockError('DF_IN_USE', `export '${id}' still in use`);
    }
    if (mode === 'hide') found.hide();
    else found.retire({ drop: mode === 'hard' });
    return found;
  }
}

function checkText(what: string, text: string): void {
  const length = Buffer.byteLength(text);
  if (length > NBD_STRING_MAX) {
    throw new BlockError('DF_INVALID', `${what} is too long: ${length} > ${NBD_STRING_MAX} bytes`);
  }
  if (text.includes('\0')) throw new BlockError('DF_INVALID', `${what} contains a NUL character`);
}
