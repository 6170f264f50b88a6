// SPDX-License-Identifier: MIT
/**
 * Bytes from one file into another without passing through us: copy_file_range(2). A file system that can
 * (XFS, btrfs, NFS) shares or moves them by itself; elsewhere the kernel copies.
 */
import { FILE_COPY_STEP } from '../base/limits.js';
import type { DiskFile } from './file.js';
import { inPool, type NativeCall, native } from './linux.js';

/** The file that is read; the caller keeps it open. */
export interface CopiedFile {
  readonly fd: number;
}

/** copy_file_range as in the table of native calls; another one in tests. */
export type CopyCall = NativeCall<[number, Uint8Array, number, Uint8Array, number, number]>;

export class FileCopier {
  readonly #file: DiskFile;
  readonly #call: CopyCall;
  /** Which it takes bytes from. False after an error: file systems that can't, a full disk, a damaged one. */
  readonly #sources = new WeakMap<CopiedFile, boolean>();

  constructor(target: DiskFile, call: CopyCall = native.copyFileRange) {
    this.#file = target;
    this.#call = call;
  }

  /** False where nothing would be copied, as far as that is known before. Never waits. */
  takes(source: CopiedFile): boolean {
    const { kind, options, fd } = this.#file;
    if (kind !== 'regular' || options.direct) return false;
    const known = this.#sources.get(source);
    if (known !== undefined) return known;
    // Of no bytes at all: Linux looks at the two files first.
    const takes = this.#call(source.fd, asBytes(0), fd, asBytes(0), 0, 0) === 0;
    this.#sources.set(source, takes);
    return takes;
  }

  /**
   * Copies in the thread pool. What goes wrong isn't told: who reads and writes the rest meets it again.
   * @param offset in the target, bytes; past its end, too
   * @returns bytes copied, from the start; less than all where the source ended or something went wrong
   */
  async copy(offset: number, source: CopiedFile, from: number, length: number): Promise<number> {
    let done = 0;
    const step = async (): Promise<number> => {
      const at = [from + done, offset + done].map(asBytes) as [Uint8Array, Uint8Array];
      const count = Math.min(length - done, FILE_COPY_STEP);
      return inPool(this.#call, 'copy', source.fd, at[0], this.#file.fd, at[1], count, 0);
    };
    const all = async (): Promise<void> => {
      while (done < length) {
        const copied = await step();
        if (copied === 0) return;
        done += copied;
      }
    };
    try {
      await this.#file.keepOpen(all());
    } catch {
      this.#sources.set(source, false);
    }
    return done;
  }
}

function asBytes(offset: number): Uint8Array {
  return new Uint8Array(BigInt64Array.of(BigInt(offset)).buffer);
}
