// SPDX-License-Identifier: MIT
/**
 * How a file node holds its image: the descriptor in use, the locks on it, and the next descriptor
 * while a change of permissions or a reopen is being prepared. Both may be under way at once.
 */
import type { MaybePromise } from '../../../base/maybe-promise.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  type PermissionMask,
  type ShareMask,
} from '../../permissions.js';
import { type AccessMode, descriptorOptions } from './file-options.js';
import { type FileDriverName, ImageHandle } from './image-handle.js';

interface HeldPermissions {
  readonly taken: PermissionMask;
  readonly shared: ShareMask;
}

export interface ImageAccessOptions {
  readonly driver: FileDriverName;
  readonly path: string;
  readonly mode: AccessMode;
  /** Lock the image as QEMU does. */
  readonly locking: boolean;
}

export class ImageAccess {
  readonly #options: ImageAccessOptions;
  /** What is in force. */
  #handle: ImageHandle;
  #mode: AccessMode;
  #held: HeldPermissions = { taken: 0, shared: PERM_ALL };
  /** What has been got ready. */
  #nextHandle: ImageHandle | undefined;
  #nextMode: AccessMode | undefined;
  #nextHeld: HeldPermissions | undefined;
  /** Old descriptors that wait for what is in flight on them. */
  readonly #retired = new Set<Promise<void>>();

  private constructor(options: ImageAccessOptions, handle: ImageHandle) {
    this.#options = options;
    this.#handle = handle;
    this.#mode = options.mode;
  }

  /** Without locks: those come with permissions. @throws BlockError as ImageHandle.open */
  static async open(options: ImageAccessOptions): Promise<ImageAccess> {
    const { driver, path, mode } = options;
    return new ImageAccess(
      options,
      await ImageHandle.open(driver, path, descriptorOptions(mode, 0)),
    );
  }

  /** The descriptor to use for a request that starts now. */
  get handle(): ImageHandle {
    return this.#handle;
  }

  get mode(): AccessMode {
    return this.#mode;
  }

  /** PERM_* bits that the node's users take. */
  get taken(): PermissionMask {
    return this.#held.taken;
  }

  /** @throws BlockError DF_LOCKED, DF_ACCESS …; all is as before then */
  preparePermissions(taken: PermissionMask, wanted: ShareMask): MaybePromise<void> {
    const mode = this.#nextMode ?? this.#mode;
    const next = { taken, shared: mode.forceShare ? PERM_ALL : sharedOutside(taken, wanted) };
    const pending = this.#prepareHandle(mode, taken);
    if (pending === undefined) return this.#prepareLocks(next, wanted);
    return pending.then(() => this.#prepareLocks(next, wanted));
  }

  commitPermissions(): void {
    this.#held = this.#nextHeld ?? this.#held;
    this.#nextHeld = undefined;
    this.#commitHandle();
    this.#handle.locks.reduce(this.#held);
  }

  abortPermissions(): void {
    this.#nextHeld = undefined;
    this.#handle.locks.reduce(this.#held);
    this.#dropNextHandle();
  }

  /** @throws BlockError when the file can't be had in that mode; all is as before then */
  async prepareMode(mode: AccessMode): Promise<void> {
    this.#nextMode = mode;
    try {
      await this.#prepareHandle(mode, this.#held.taken);
      if (this.#options.locking) this.#nextHandle?.locks.add(this.#held);
    } catch (error) {
      this.abortMode();
      throw error;
    }
  }

  commitMode(): void {
    this.#mode = this.#nextMode ?? this.#mode;
    this.#nextMode = undefined;
    this.#commitHandle();
  }

  abortMode(): void {
    this.#nextMode = undefined;
    this.#dropNextHandle();
  }

  /** Gives up locks and descriptors. Never rejects. */
  async close(): Promise<void> {
    this.#dropNextHandle();
    await this.#handle.file.close();
    await Promise.all(this.#retired);
  }

  /** Opens another descriptor where the present one has not the access that is needed. */
  #prepareHandle(mode: AccessMode, taken: PermissionMask): MaybePromise<void> {
    const { driver, path } = this.#options;
    const wanted = descriptorOptions(mode, taken);
    if (this.#nextHandle?.matches(wanted)) return;
    this.#dropNextHandle();
    if (this.#handle.matches(wanted)) return;
    return ImageHandle.open(driver, path, wanted).then((handle) => {
      this.#nextHandle = handle;
    });
  }

  /** On the old descriptor first, which sees the locks of others and not those of the new one. */
  #prepareLocks(next: HeldPermissions, wanted: ShareMask): void {
    this.#nextHeld = next;
    if (!this.#options.locking) return;
    const { taken, shared } = this.#held;
    const more = (next.taken & ~taken) !== 0 || (shared & ~next.shared) !== 0;
    try {
      if (more) {
        // A reopen may have put locks on the new one already: they must not be taken for others'.
        this.#nextHandle?.locks.reduce({ taken: 0, shared: PERM_ALL });
        this.#handle.locks.add({ taken: next.taken | taken, shared: next.shared & shared });
        this.#checkLocks(next, wanted);
      }
      this.#nextHandle?.locks.add(next);
    } catch (error) {
      this.abortPermissions();
      throw error;
    }
  }

  /**
   * What users asked for first. What is not shared besides, because a user reads, is often all that there
   * is while an image is being opened, and the lesser reason: others who write are in the way as such.
   */
  #checkLocks(next: HeldPermissions, wanted: ShareMask): void {
    const { locks } = this.#handle;
    locks.check({ taken: next.taken, shared: next.shared | wanted });
    try {
      locks.check(next);
    } catch (error) {
      const { readOnly } = this.#nextMode ?? this.#mode;
      locks.check({ taken: readOnly ? 0 : PERM_WRITE, shared: PERM_ALL & ~PERM_WRITE });
      throw error;
    }
  }

  #commitHandle(): void {
    const next = this.#nextHandle;
    if (next === undefined) return;
    this.#nextHandle = undefined;
    this.#retire(this.#handle);
    this.#handle = next;
  }

  #dropNextHandle(): void {
    if (this.#nextHandle !== undefined) this.#retire(this.#nextHandle);
    this.#nextHandle = undefined;
  }

  #retire({ file, locks }: ImageHandle): void {
    // Closing takes its time, and what it still held would be taken for others' locks.
    if (this.#options.locking) locks.reduce({ taken: 0, shared: PERM_ALL });
    const closed = file.close().finally(() => this.#retired.delete(closed));
    this.#retired.add(closed);
  }
}

/**
 * What other programs may do. An export lets `block_resize` change its node's size, of which we know;
 * another program that cuts the file off would take what clients have written, and nobody would know.
 */
function sharedOutside(taken: PermissionMask, wanted: ShareMask): ShareMask {
  return (taken & (PERM_CONSISTENT_READ | PERM_WRITE)) === 0 ? wanted : wanted & ~PERM_RESIZE;
}
