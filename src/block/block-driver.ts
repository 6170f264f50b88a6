// SPDX-License-Identifier: MIT
/**
 * The contract between a node and the driver behind it. A node (`node.ts`) does once for all drivers
 * what is generic: bounds, read-only, alignment, splitting by limits, tracking, dirty bitmaps,
 * statistics. A driver does only its own work and may rely on all of that.
 */
import type { MaybePromise } from '../base/maybe-promise.js';
import type { BlockBackend } from './backend.js';
import type { BitmapStore } from './bitmap/bitmap-store.js';
import type { BitmapHolder } from './bitmap/dirty-bitmap.js';
import type { ChildEdge } from './edge.js';
import type { FileRange, RangeUse, SendRequest } from './file-range.js';
import type { ImageChecker } from './image-check.js';
import type { BlockNode } from './node.js';
import type { NodeOptions } from './node-options.js';
import type { PermissionMask, ShareMask } from './permissions.js';
import type { RequestFlags } from './request-flags.js';

export * from './request-flags.js';

/** What a driver asks of the requests that it gets. All in bytes; powers of two where alignment. */
export interface BlockLimits {
  /** Offsets and lengths are multiples of this. The node pads (read-modify-write). 1 to 64 KiB. */
  readonly requestAlignment: number;
  /** Buffers for direct I/O start at multiples of this in memory; others are copied. */
  readonly memoryAlignment: number;
  /** Longest read or write; the node splits. 0: no limit of its own. */
  readonly maxTransfer: number;
  /** Preferred length; a hint for NBD's preferred block size. 0: none. */
  readonly optimalTransfer: number;
  /** Longest write-zeroes and the alignment at which it is efficient. 0: none. */
  readonly maxWriteZeroes: number;
  readonly writeZeroesAlignment: number;
  readonly maxDiscard: number;
  readonly discardAlignment: number;
  /**
   * Writes with REQ_WRITE_COMPRESSED begin at multiples of this and end at one, or at the node's end. 0:
   * nothing is compressed here.
   */
  readonly compressedUnit: number;
}

export const DEFAULT_LIMITS: BlockLimits = {
  requestAlignment: 1,
  memoryAlignment: 1,
  maxTransfer: 0,
  optimalTransfer: 0,
  maxWriteZeroes: 0,
  writeZeroesAlignment: 1,
  maxDiscard: 0,
  discardAlignment: 1,
  compressedUnit: 0,
};

// Flags of an extent, as block status reports them.
/** Reading takes the bytes from this layer's own storage (they may still be zero). */
export const STATUS_DATA = 1;
/** The range reads as zeroes, and that is known without reading. */
export const STATUS_ZERO = 2;
/** This layer decides the content (not its backing node). */
export const STATUS_ALLOCATED = 4;
/** `hostOffset` is valid: the bytes lie there as they are, in `delegate`'s node or the own file. */
export const STATUS_OFFSET_VALID = 8;
/** Compressed clusters: data that has no host offset. */
export const STATUS_COMPRESSED = 16;

/** One run of equal status. */
export interface Extent {
  /** Bytes, at least 1 and at most what was asked for. */
  length: number;
  /** STATUS_* bits. */
  flags: number;
  hostOffset?: number;
  /** Set by filters and formats: where to ask for the rest, at `hostOffset`. */
  delegate?: ChildEdge;
}

export type PreallocationMode = 'off' | 'metadata' | 'falloc' | 'full';

export interface TruncateOptions {
  /** False: a node that ends up larger will do. */
  readonly exact: boolean;
  readonly preallocation: PreallocationMode;
}

/** Which features the driver has, said up front instead of found by failing. */
export interface DriverFeatures {
  /** `write` and `writeZeroes` honour REQ_FUA themselves; otherwise the node flushes after them. */
  readonly fua: boolean;
  /** `writeZeroes` exists and can be quicker than writing zero bytes. */
  readonly writeZeroes: boolean;
  readonly discard: boolean;
  /** Every overlay reads through to this child where it has not allocated (role 'backing'). */
  readonly backing: boolean;
  /** Several writers at once, on several NBD connections, see each other's completed writes. */
  readonly multiConn: boolean;
}

/**
 * A driver instance behind one node.
 *
 * Every I/O method returns nothing (or its value) when it completed at once and a promise when it
 * had to wait; the caller awaits only promises. Buffers belong to the caller and must not be kept
 * once the request has ended; they may overlap in time. None is submitted after `close`. Errors: BlockError.
 */
export interface BlockDriver {
  /** Name as in QMP's BlockdevDriver. */
  readonly name: string;
  readonly features: DriverFeatures;
  readonly limits: BlockLimits;
  /** Current size in bytes, below NODE_SIZE_MAX. Cheap; called for every request's bounds. */
  readonly size: number;
  /** True when the medium turned out not to be writable and `auto-read-only` accepted that. */
  readonly readOnly?: boolean;
  /** True for an image whose data is encrypted. */
  readonly encrypted?: boolean;
  /** Time of a request that does nothing, milliseconds, where that is a way over a network. */
  readonly roundTripMs?: number | undefined;
  /** True where what nobody has written reads as arbitrary bytes, in a new image too. */
  readonly newIsArbitrary?: boolean;

  /**
   * Reads exactly `buffer.byteLength` bytes at `offset`; aligned and in range. Bytes past the
   * end of a node whose size is no multiple of the alignment read as zeroes.
   */
  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void>;
  /**
   * Sends a reply with data straight to a socket, for drivers whose bytes lie in a file as they are;
   * whoever has to look at the bytes, or to hold requests back, has no `send`. Aligned and in range.
   * @returns bytes of the reply that the socket took; 0: none, and `read` has to do it. Otherwise what
   * the socket did not take has been read into its place in the reply.
   * @throws BlockError when that fails: the reply is broken off and can't be completed
   */
  send?(request: SendRequest): number;
  /**
   * A read whose bytes are taken from the file that they lie in as they are. `use` is called at once, for a
   * leading part, or not at all: without waiting, and never where somebody has to see the bytes or to hold
   * requests back. Aligned and in range. Bytes keep their place until the request has ended.
   * @returns what `use` does; 0: `read` has to do it @throws only what `use` throws
   */
  readRange?(offset: number, length: number, use: RangeUse): MaybePromise<number>;
  /** Nothing, or a promise for the time when sockets have delivered what `send` gave them. Bounded. */
  whenIdle?(): MaybePromise<void>;
  /**
   * Has a leading part of a file's range copied by the system. In range, or past the end as `write`.
   * @param flags REQ_OFFLOAD; REQ_LEND or REQ_LEND_ONCE, or bytes are taken before the request ends, in any case
   * @returns bytes written; 0: none, and `write` has to do it, also where copying failed: it tells why
   * @throws BlockError what has nothing to do with the data: tables of an image, a peer; or of the source
   */
  writeFrom?(offset: number, source: FileRange, flags: RequestFlags): MaybePromise<number>;
  /** The length of a `writeFrom` that pays best, where that is more than a write's, bytes. */
  readonly passLength?: number | undefined;
  /** Writes all of `buffer`. Absent: the driver is read-only by nature. */
  write?(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void>;
  /**
   * Makes the range read as zeroes; with REQ_MAY_UNMAP it may be deallocated. Throws
   * DF_NOT_SUPPORTED when it can't do better than writing (the node then writes zero buffers,
   * unless REQ_NO_FALLBACK).
   */
  writeZeroes?(offset: number, length: number, flags: RequestFlags): MaybePromise<void>;
  /** The content of the range is no longer needed; may do nothing. */
  discard?(offset: number, length: number): MaybePromise<void>;
  /** What completed before is on stable storage afterwards. The node flushes children after this. */
  flush?(): MaybePromise<void>;
  /** True: `flush` takes the children along, because one that fails may not matter. */
  readonly flushesChildren?: boolean;
  /** Status of a prefix of the range, at this layer alone. Absent: all data. */
  blockStatus?(offset: number, length: number): MaybePromise<Extent>;
  /**
   * Changes the size. Bytes gained read as zeroes, but for an encrypted image, where they are
   * arbitrary. `exact` false: a larger node is fine.
   */
  truncate?(size: number, options: TruncateOptions): Promise<void>;

  /**
   * What the driver takes of, and shares on, a child, given what its own parents take and share.
   * Absent: `filterPermissions` or `formatPermissions` by the kind of driver.
   */
  childPermissions?(
    role: ChildRole,
    parents: { taken: PermissionMask; shared: ShareMask },
  ): { taken: PermissionMask; shared: ShareMask };
  /**
   * Parents' needs change: get ready (take locks, reopen for writing), throwing where it can't be had.
   * Then exactly one of commit and abort is called; neither may fail.
   */
  preparePermissions?(taken: PermissionMask, shared: ShareMask): MaybePromise<void>;
  commitPermissions?(): void;
  abortPermissions?(): void;

  /**
   * Who waits for this node has given up: ends what only waits for a lost peer to come back, or for
   * one that says nothing. Requests that a living peer works on go on.
   */
  cancelInFlight?(): void;
  /** The graph is about to change: end what the driver holds back or does by itself (queued requests pass). */
  drainBegin?(): void;
  drainEnd?(): void;

  /** blockdev-reopen with checked options of the same driver; two-phase like permissions. */
  prepareReopen?(options: NodeOptions): MaybePromise<void>;
  commitReopen?(): void;
  abortReopen?(): void;
  /**
   * blockdev-reopen has put another node in a child's place (undefined: none); called before
   * `commitReopen`. A driver without it keeps its children for life.
   */
  childReplaced?(key: string, edge: ChildEdge | undefined): void;
  /** The graph has moved a child edge from node `from` to another, in a drained section. */
  childMoved?(edge: ChildEdge, from: BlockNode): void;
  /**
   * Another node with the content of this one may take the child's place: nobody above would notice,
   * whatever the child has. Absent: of no child.
   */
  maySwap?(edge: ChildEdge): boolean;
  /** x-blockdev-change. Absent: no child comes or goes. */
  readonly childList?: ChildList;

  /** The string that QEMU shows as `file`/`filename`: a path, a json: description, or ''. */
  readonly filename: string;
  /** Bytes that the image takes of its medium. Absent: what the children tell; not known without any. */
  allocatedSize?(): MaybePromise<number>;
  /** Driver-specific parts of query-named-block-nodes (ImageInfoSpecific), where there are any. */
  specificInfo?(): MaybePromise<Readonly<Record<string, unknown>> | undefined>;
  /**
   * Notes another backing file in the image (undefined: none), durably when it is done. The node that
   * is read there is the graph's affair.
   * @throws BlockError DF_INVALID when the name can't be noted; the old one stays
   */
  changeBackingFile?(backing: BackingFile | undefined): Promise<void>;
  /** The image has nothing of its own any more and reads as its backing node. Nobody uses it meanwhile. */
  makeEmpty?(): Promise<void>;
  /** What a format knows of its image, for queries. */
  formatInfo?(): MaybePromise<FormatInfo>;
  /**
   * The image is handed to somebody else: everything that is only in memory goes to the children. Called
   * drained; no request follows until `activate`.
   */
  inactivate?(): MaybePromise<void>;
  /** The image is ours again, as others have left it: what was kept of it in memory is read anew. */
  activate?(): MaybePromise<void>;
  /** Persistent bitmaps. Absent: the driver keeps none. */
  readonly bitmapStore?: BitmapStore;
  /** Snapshots inside the image. Absent: the format has none. */
  readonly snapshots?: InternalSnapshots;
  /** Driver-specific statistics (BlockStatsSpecific). */
  specificStats?(): Readonly<Record<string, unknown>> | undefined;
  /** Releases everything (descriptors, locks, sockets, timers). Called once, drained. Must not throw. */
  close(): MaybePromise<void>;
}

/** A backing file as an image notes it. */
export interface BackingFile {
  readonly filename: string;
  /** Undefined: it is to be guessed when the image is opened. */
  readonly format: string | undefined;
}

/** A point in time of a disk, kept in its image. @see qapi SnapshotInfo */
export interface InternalSnapshot {
  /** Unique in the image. */
  readonly id: string;
  readonly name: string;
  /** State of a machine, bytes; 0: of the disk alone. */
  readonly vmStateSize: number;
  /** When it was made, seconds since 1970. */
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  /** How long the guest had run. */
  readonly clockSeconds: number;
  readonly clockNanoseconds: number;
  /** Instructions that the guest had executed; absent: not known. */
  readonly icount?: number;
}

export type NewInternalSnapshot = Pick<
  InternalSnapshot,
  'name' | 'dateSeconds' | 'dateNanoseconds'
>;

/** What changes them is called while no request is under way, and none is made meanwhile. */
export interface InternalSnapshots {
  list(): Promise<InternalSnapshot[]>;
  /** @returns the snapshot, with its id */
  create(snapshot: NewInternalSnapshot): Promise<InternalSnapshot>;
  /** @throws BlockError DF_NOT_FOUND unless one has both */
  delete(snapshot: Pick<InternalSnapshot, 'id' | 'name'>): Promise<void>;
  /**
   * The disk becomes what it was, its size too.
   * @param wanted id or name @throws BlockError DF_NOT_FOUND
   */
  apply(wanted: string): Promise<void>;
  /** The node, which is read-only, shows what the disk was, in its size, until it is closed. */
  show(snapshot: Pick<InternalSnapshot, 'id'>): Promise<void>;
}

/** Children that come and go one by one while their parent is in use. */
export interface ChildList {
  /** Key and role of one more child. @throws BlockError when `node` can't be one */
  next(node: BlockNode): { readonly key: string; readonly role: ChildRole };
  /** The child is there; its parent is drained. */
  added(edge: ChildEdge): void;
  /** @throws BlockError when the child can't be spared */
  checkRemove(edge: ChildEdge): void;
  /** The child goes; its parent is drained. */
  removed(edge: ChildEdge): void;
}

/** What a child is for. 'filtered' is the one child that a filter passes through. */
export type ChildRole =
  | 'file'
  | 'backing'
  | 'data-file'
  | 'target'
  | 'filtered'
  | 'test'
  | 'raw'
  | 'log'
  | 'copy'
  | 'child';

export type DriverKind = 'protocol' | 'format' | 'filter';

/** Static description of a driver: how to make an instance. One per file in driver/ and filter/. */
export interface DriverDefinition {
  /** Name in QMP's BlockdevDriver. */
  readonly name: string;
  readonly kind: DriverKind;
  /** The children that options may name, by their key in the options ('file', 'backing', …). */
  readonly children: readonly ChildDefinition[];
  /**
   * What can be told to be wrong before the children are opened.
   * @param given all options, children included @throws BlockError DF_INVALID
   */
  checkOptions?(given: DriverOptions): void;
  /**
   * Makes an instance. Options have been validated against the QAPI schema (types, unknown keys);
   * what depends on values is checked here. Children are attached and can be read.
   */
  open(options: DriverOptions, context: OpenContext): MaybePromise<BlockDriver>;
  /**
   * Children that the options say nothing of and the medium itself names: a backing file that stands in
   * an image. Called when the children of the options are attached. Keys that the options have (null
   * too) are not looked at. A child that has 'file' and no driver gets the format that is found there.
   * @param resolve the protocol node's options for a file name: see `filenameOptions`
   */
  impliedChildren?(
    options: DriverOptions,
    context: OpenContext,
    resolve: (filename: string) => Promise<DriverOptions>,
  ): MaybePromise<Readonly<Record<string, DriverOptions>>>;
  /**
   * Options for a file name that is of this driver's kind ('nbd://…', the path of a device); undefined
   * for others. @throws BlockError for one of its kind that is wrong
   */
  readonly fromFilename?: (filename: string) => MaybePromise<DriverOptions | undefined>;
  /** It may have images that take compressed writes; see `compressedUnit` for those that do. */
  readonly compresses?: boolean;
  /** How it makes images, where it does: `blockdev-create`. */
  readonly create?: ImageCreation;
  /** How its images are checked, where they can be: they lie on the child 'file'. */
  readonly checker?: ImageChecker;
}

/** Takes away a file that was made; never rejects. */
export type RemoveImage = () => Promise<void>;

/** How a driver makes an image. Run by `create-image.ts`. */
export interface ImageCreation {
  /** Options that are a BlockdevRef: nodes to write to. Absent for drivers that make files. */
  readonly nodes?: readonly { readonly key: string; readonly required: boolean }[];
  /** The option that names the image's backing file is 'backing-file', its format 'backing-fmt'. */
  readonly backing?: boolean;
  /**
   * Makes the image. What it writes is flushed by the caller; what it leaves behind when it fails is
   * up to it, but for a file that was not there before: that goes again.
   * @param options validated BlockdevCreateOptions of this driver, wire spelling, without `nodes`
   * @throws BlockError that says what was wrong; soon after `context.signal` has aborted
   */
  create(options: DriverOptions, context: CreateContext): MaybePromise<void>;
  /**
   * Looks at the options before anything is opened, emptied or made for the image.
   * @param options as for `create`, with `nodes`
   */
  check?(options: DriverOptions): MaybePromise<void>;
  /**
   * How much room an image would take. Absent: as much as the disk has bytes.
   * @param options as for `create`; the size is that of `source` where there is one
   * @param source whose content the image is to have; absent: none, it is empty
   */
  measure?(options: DriverOptions, source: BlockBackend | undefined): MaybePromise<ImageMeasure>;
}

/** @see qapi BlockMeasureInfo. All in bytes. */
export interface ImageMeasure {
  /** Of the file with what is to be copied. */
  readonly required: number;
  /** Of the file once everything has been written to. */
  readonly fullyAllocated: number;
  /** What the source's persistent bitmaps need besides; absent: they can't be had. */
  readonly bitmaps?: number;
}

export interface CreateContext {
  /** The node of an option among `nodes`: to be read, written and resized, by nobody else meanwhile. */
  node(key: string): BlockBackend;
  /** As `node`, for an option that may be absent. */
  findNode(key: string): BlockBackend | undefined;
  /** Aborts when the job was cancelled; what waits on the nodes fails then. */
  readonly signal: AbortSignal;
  /** A file was made where there was none: it is taken away when the image can't be made. */
  madeFile(remove: RemoveImage): void;
}

export interface ChildDefinition {
  readonly key: string;
  readonly role: ChildRole;
  readonly required: boolean;
  /** True: the option is a list of children; their edges are called `key`.0, `key`.1 and so on. */
  readonly list?: boolean;
}

/** What a driver that keeps several copies tells of them. */
export interface CopyReports {
  /** A copy failed, or (no `error`) its content was outvoted. Offset and length in bytes. */
  bad(copy: ChildEdge, report: CopyReport): void;
  /** Too few copies have succeeded, or agree: the request fails. */
  failed(range: { readonly offset: number; readonly length: number }): void;
}

export interface CopyReport {
  readonly operation: 'read' | 'write' | 'flush';
  readonly offset: number;
  readonly length: number;
  readonly error?: unknown;
}

/**
 * The validated BlockdevOptions object, wire spelling ('node-name', 'read-only'), children removed.
 * Drivers narrow it with the schema's derived type.
 */
export type DriverOptions = Readonly<Record<string, unknown>>;

export interface OpenContext {
  readonly nodeName: string;
  /** False when the node was opened `read-only`; true may still mean auto-read-only. */
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  readonly cache: { readonly direct: boolean; readonly noFlush: boolean };
  readonly discard: 'ignore' | 'unmap';
  /** The attached children by key; only those given. */
  readonly children: Readonly<Record<string, ChildEdge>>;
  child(key: string): ChildEdge;
  readonly copyReports: CopyReports;
  /** The node's bitmaps, to which those of the image are added. */
  readonly bitmaps: BitmapHolder;
  /** To be called when the image is let go of and its bitmaps could not be stored in it. */
  bitmapsLost(error: unknown): void;
  /** Aborts when the opener gave up (deadline, cancelled command). */
  readonly signal: AbortSignal;
  /** Only what the image says of itself is wanted, not its data: no key is needed for that. */
  readonly metadataOnly?: boolean;
  /** To be called when the medium turns out to contradict itself. */
  imageCorrupted(corruption: ImageCorruption): void;
}

/** What is wrong with an image. @see qapi BLOCK_IMAGE_CORRUPTED */
export interface ImageCorruption {
  readonly message: string;
  /** Where, bytes of the image file; absent: at no place in particular. */
  readonly offset?: number;
  readonly size?: number;
  /** The image can not be used any more. */
  readonly fatal: boolean;
}

/** What a format tells of its image. @see qapi ImageInfo */
export interface FormatInfo {
  /** Bytes. */
  readonly clusterSize: number;
  /** The backing file, as it stands in the image; absent: none. */
  readonly backingFilename?: string;
  /** The same with its whole path. */
  readonly fullBackingFilename?: string;
  readonly backingFormat?: string;
  /** It was not closed cleanly. */
  readonly dirty: boolean;
}
