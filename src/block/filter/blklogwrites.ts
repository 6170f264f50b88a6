// SPDX-License-Identifier: MIT
/**
 * Filter that keeps a log of all that changes its child, in the format of Linux's dm-log-writes.
 * @see qapi BlockdevOptionsBlklogwrites, Linux Documentation/admin-guide/device-mapper/log-writes.rst
 */
import { isPowerOfTwo } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import { Mutex } from '../../base/mutex.js';
import type {
  BlockLimits,
  ChildRole,
  DriverDefinition,
  DriverFeatures,
  DriverOptions,
  RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import {
  filterPermissions,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type Permissions,
} from '../permissions.js';
import { jsonFilename, lengthInside, PassThroughDriver, readPadded } from './pass-through.js';

// Log format: a superblock in the first sector, then entries of one sector, each with its data.
// All fields are little-endian.
const LOG_MAGIC = 0x6a73_6677_7368_72n;
const LOG_VERSION = 1n;
const LOG_FLUSH_FLAG = 1n;
const LOG_DISCARD_FLAG = 4n;
const LOG_FLAGS_KNOWN = 15n;
/** u64 magic, version, nr_entries; u32 sectorsize. */
const SUPERBLOCK_LENGTH = 28;
/** u64 sector, nr_sectors, flags, data_len. */
const ENTRY_LENGTH = 32;

const SECTOR_DEFAULT = 512;
const SECTOR_MAX = 2 ** 23;
const INTERVAL_DEFAULT = 4096;

export const blklogwritesDefinition: DriverDefinition = {
  name: 'blklogwrites',
  kind: 'filter',
  children: [
    { key: 'file', role: 'filtered', required: true },
    { key: 'log', role: 'log', required: true },
  ],
  async open(options, context) {
    const log = context.child('log');
    const position = await openLog(options, log);
    return new BlklogwritesDriver({ file: context.child('file'), log }, position, options);
  },
};

/** Where the log goes on. */
interface LogPosition {
  /** Bytes in a sector, of the log and of the child's requests. */
  readonly sectorSize: number;
  readonly updateInterval: number;
  /** Sector of the next entry. */
  nextSector: number;
  entries: number;
}

/** A change of the child as an entry describes it. */
interface LogEntry {
  readonly offset: number;
  readonly length: number;
  readonly flags: bigint;
  /** Bytes that follow the entry; zeroes when it is absent and the flags say nothing else. */
  readonly data?: Buffer;
}

class BlklogwritesDriver extends PassThroughDriver {
  readonly #log: ChildEdge;
  readonly #position: LogPosition;
  readonly #options: DriverOptions;
  /** Entries are appended one at a time, so that the superblock never counts one that is missing. */
  readonly #appending = new Mutex();
  override readonly features: DriverFeatures;

  constructor(
    children: { readonly file: ChildEdge; readonly log: ChildEdge },
    position: LogPosition,
    options: DriverOptions,
  ) {
    super('blklogwrites', children.file);
    this.#log = children.log;
    this.#position = position;
    this.#options = options;
    const { writeZeroes, discard } = children.file.node.driver.features;
    // Without FUA of its own, a FUA write is followed by a flush, which the log shows.
    this.features = { fua: false, writeZeroes, discard, backing: false, multiConn: false };
  }

  override get limits(): BlockLimits {
    return { ...this.child.limits, requestAlignment: this.#position.sectorSize };
  }

  override get filename(): string {
    const own = ['log-append', 'log-sector-size'].flatMap((key) =>
      this.#options[key] === undefined ? [] : [[key, this.#options[key]]],
    );
    return jsonFilename(
      'blklogwrites',
      { file: this.child, log: this.#log },
      Object.fromEntries(own),
    );
  }

  childPermissions(role: ChildRole, parents: Permissions): Permissions {
    if (role !== 'log') return filterPermissions(parents);
    return {
      taken: PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
      shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
    };
  }

  override read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return readPadded(this.child, offset, buffer, flags);
  }

  override async write(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    const inside = lengthInside(this.child, offset, buffer.byteLength);
    await this.child.write(offset, buffer.subarray(0, inside), flags);
    await this.#append({ offset, length: buffer.byteLength, flags: 0n, data: buffer });
  }

  override async writeZeroes(offset: number, length: number, flags: RequestFlags): Promise<void> {
    await this.child.writeZeroes(offset, lengthInside(this.child, offset, length), flags);
    await this.#append({ offset, length, flags: 0n });
  }

  override async discard(offset: number, length: number): Promise<void> {
    await this.child.discard(offset, lengthInside(this.child, offset, length));
    await this.#append({ offset, length, flags: LOG_DISCARD_FLAG });
  }

  /** The child is flushed before the log says so. */
  async flush(): Promise<void> {
    await this.child.flush();
    await this.#append({ offset: 0, length: 0, flags: LOG_FLUSH_FLAG });
  }

  #append(entry: LogEntry): Promise<void> {
    return this.#appending.run(async () => {
      const position = this.#position;
      const { sectorSize } = position;
      const hasData = (entry.flags & LOG_DISCARD_FLAG) === 0n && entry.length > 0;
      const at = position.nextSector * sectorSize;
      const header = encodeEntry(entry, sectorSize);
      const { data } = entry;
      await this.#log.write(at, data === undefined ? header : Buffer.concat([header, data]));
      if (hasData && data === undefined) {
        await this.#log.writeZeroes(at + sectorSize, entry.length);
      }
      position.entries++;
      position.nextSector += 1 + (hasData ? entry.length / sectorSize : 0);
      const flushed = (entry.flags & LOG_FLUSH_FLAG) !== 0n;
      if (flushed || position.entries % position.updateInterval === 0) {
        await this.#writeSuperblock();
      }
    });
  }

  async #writeSuperblock(): Promise<void> {
    const { sectorSize, entries } = this.#position;
    const block = Buffer.alloc(sectorSize);
    block.writeBigUInt64LE(LOG_MAGIC, 0);
    block.writeBigUInt64LE(LOG_VERSION, 8);
    block.writeBigUInt64LE(BigInt(entries), 16);
    block.writeUInt32LE(sectorSize, 24);
    await this.#log.write(0, block);
    await this.#log.flush();
  }
}

function encodeEntry({ offset, length, flags }: LogEntry, sectorSize: number): Buffer {
  const header = Buffer.alloc(sectorSize);
  header.writeBigUInt64LE(BigInt(offset / sectorSize), 0);
  header.writeBigUInt64LE(BigInt(length / sectorSize), 8);
  header.writeBigUInt64LE(flags, 16);
  return header;
}

async function openLog(options: DriverOptions, log: ChildEdge): Promise<LogPosition> {
  const updateInterval =
    (options['log-super-update-interval'] as number | undefined) ?? INTERVAL_DEFAULT;
  const givenSector = options['log-sector-size'] as number | undefined;
  const append = options['log-append'] === true;
  if (append && givenSector !== undefined) {
    throw invalid('log-append and log-sector-size are mutually exclusive');
  }
  const old = append && log.size > 0 ? await readSuperblock(log) : undefined;
  const sectorSize = old?.sectorSize ?? givenSector ?? SECTOR_DEFAULT;
  if (!isPowerOfTwo(sectorSize) || sectorSize < ENTRY_LENGTH || sectorSize > SECTOR_MAX) {
    throw invalid(`Invalid log sector size ${sectorSize}`);
  }
  if (updateInterval <= 0) {
    throw invalid(`Invalid log superblock update interval ${updateInterval}`);
  }
  const entries = old?.entries ?? 0;
  const nextSector = await findEnd(log, sectorSize, entries);
  return { sectorSize, updateInterval, entries, nextSector };
}

async function readSuperblock(log: ChildEdge): Promise<{ sectorSize: number; entries: number }> {
  if (log.size < SUPERBLOCK_LENGTH) throw invalid('Could not read log superblock');
  const block = Buffer.alloc(SUPERBLOCK_LENGTH);
  await log.read(0, block);
  if (block.readBigUInt64LE(0) !== LOG_MAGIC) throw invalid('Invalid log superblock magic');
  const version = block.readBigUInt64LE(8);
  if (version !== LOG_VERSION) throw invalid(`Unsupported log version ${version}`);
  return { entries: Number(block.readBigUInt64LE(16)), sectorSize: block.readUInt32LE(24) };
}

/** The sector after the last entry. Each step goes forward, so the log's size bounds the work. */
async function findEnd(log: ChildEdge, sectorSize: number, entries: number): Promise<number> {
  const entry = Buffer.alloc(ENTRY_LENGTH);
  let sector = 1;
  for (let index = 0; index < entries; index++) {
    if (sector * sectorSize + ENTRY_LENGTH > log.size) {
      throw invalid(`Failed to read log entry ${index}`);
    }
    await log.read(sector * sectorSize, entry);
    const flags = entry.readBigUInt64LE(16);
    if ((flags & ~LOG_FLAGS_KNOWN) !== 0n) {
      throw invalid(`Invalid flags 0x${flags.toString(16)} in log entry ${index}`);
    }
    sector += 1;
    if ((flags & LOG_DISCARD_FLAG) === 0n) sector += Number(entry.readBigUInt64LE(8));
  }
  if (sector * sectorSize > log.size && sector > 1) {
    throw invalid(`the last entry of the log reaches past its end, ${log.size} bytes`);
  }
  return sector;
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
