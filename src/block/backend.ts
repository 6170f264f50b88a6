// SPDX-License-Identifier: MIT
/** The root parent of a node: how exports, jobs and commands do I/O on the graph. */
import type { BlockError } from '../base/errors.js';
import { isPromise, type MaybePromise } from '../base/maybe-promise.js';
import type { BlockLimits, RequestFlags, TruncateOptions } from './block-driver.js';
import { type ChainExtent, chainStatus } from './block-status.js';
import type { ChildEdge, EdgeParent } from './edge.js';
import type { FileRange, RangeUse, SendRequest } from './file-range.js';
import { InFlight } from './in-flight.js';

interface Waiting {
  readonly submit: () => void;
  readonly reject: (reason: BlockError) => void;
}

/** What a backend's owner may want to hear of. */
export interface BackendObserver {
  /** The node's size has changed, bytes. */
  resized?(size: number): void;
  /** A request that reached the node failed there. */
  failed?(operation: 'read' | 'write', error: unknown): void;
  /** Requests are held back from now on, or pass again. Jobs pause and resume themselves. */
  drained?(held: boolean): void;
  /** When nothing is in flight that the owner submits on the backend's account, but past it. */
  whenIdle?(): MaybePromise<void>;
}

/**
 * Requests pass straight to the node. While the graph is drained (or `hold` is in force) they wait
 * in order of arrival and are submitted when that ends. Made by `graph.attach`, ended by `graph.detach`.
 */
export class BlockBackend implements EdgeParent {
  readonly #description: string;
  readonly #observer: BackendObserver;
  readonly #inFlight = new InFlight();
  #edge: ChildEdge | undefined;
  #heldBy = 0;
  #waiting: Waiting[] = [];

  /** @param description as it stands in error texts: "export 'exp0'", "block job 'j0'" */
  constructor(description: string, observer: BackendObserver = {}) {
    this.#description = description;
    this.#observer = observer;
  }

  /** Set and cleared by the graph. */
  set edge(edge: ChildEdge | undefined) {
    this.#edge = edge;
  }

  get attached(): boolean {
    return this.#edge !== undefined;
  }

  /** The edge to the node. @throws when detached: a bug of the owner */
  get root(): ChildEdge {
    if (this.#edge === undefined) throw new Error(`${this.#description} has no node any more`);
    return this.#edge;
  }

  /** Bytes. */
  get size(): number {
    return this.root.node.size;
  }

  get limits(): BlockLimits {
    return this.root.node.limits;
  }

  get readOnly(): boolean {
    return this.root.node.readOnly;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.read(offset, buffer, flags));
    try {
      const pending = this.root.node.read(offset, buffer, flags);
      if (pending !== undefined) return this.#track(pending, 'read');
    } catch (error) {
      this.#observer.failed?.('read', error);
      throw error;
    }
  }

  /** A read whose reply goes straight to a socket; 0: it can't, `read` has to do it. */
  send(request: SendRequest): number {
    if (this.#heldBy !== 0) return 0;
    try {
      return this.root.node.send(request);
    } catch (error) {
      this.#observer.failed?.('read', error);
      throw error;
    }
  }

  /** A read whose bytes are taken from their file; 0: it can't, `read` has to do it. */
  readRange(offset: number, length: number, use: RangeUse): MaybePromise<number> {
    if (this.#heldBy !== 0) return 0;
    const pending = this.root.node.readRange(offset, length, use);
    return isPromise(pending) ? this.#track(pending) : pending;
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags = 0): MaybePromise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.write(offset, buffer, flags));
    try {
      const pending = this.root.node.write(offset, buffer, flags);
      if (pending !== undefined) return this.#track(pending, 'write');
    } catch (error) {
      this.#observer.failed?.('write', error);
      throw error;
    }
  }

  /** A write of bytes that a file has; 0: it can't, `write` has to do it. */
  writeFrom(offset: number, source: FileRange, flags: RequestFlags = 0): MaybePromise<number> {
    if (this.#heldBy !== 0) return 0;
    return this.#change(() => this.root.node.writeFrom(offset, source, flags));
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags = 0): MaybePromise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.writeZeroes(offset, length, flags));
    return this.#change(() => this.root.node.writeZeroes(offset, length, flags));
  }

  discard(offset: number, length: number): MaybePromise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.discard(offset, length));
    return this.#change(() => this.root.node.discard(offset, length));
  }

  flush(): MaybePromise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.flush());
    return this.#change(() => this.root.node.flush());
  }

  /**
   * Another size, bytes; needs the permission `resize`. Bytes gained read as zeroes.
   * @throws BlockError as `BlockNode.truncate`
   */
  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    if (this.#heldBy !== 0) return this.#later(() => this.truncate(size, options));
    await this.#change(() => this.root.node.truncate(size, options));
  }

  /** Status of a prefix of the range through the whole chain. */
  blockStatus(offset: number, length: number): MaybePromise<ChainExtent> {
    if (this.#heldBy !== 0) return this.#later(() => this.blockStatus(offset, length));
    const pending = chainStatus(this.root.node, offset, length);
    return pending instanceof Promise ? this.#track(pending) : pending;
  }

  /** Holds requests back, as `stop` asks; what is in flight goes on. Undone by `release`. */
  hold(): void {
    this.drainBegin();
  }

  release(): void {
    this.drainEnd();
  }

  /** Fails the requests that are held back: whoever made them is gone. */
  failWaiting(reason: BlockError): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { reject } of waiting) reject(reason);
  }

  describe(): string {
    return this.#description;
  }

  drainBegin(): void {
    this.#heldBy++;
    if (this.#heldBy === 1) this.#observer.drained?.(true);
  }

  drainEnd(): void {
    if (this.#heldBy === 0) throw new Error(`${this.#description}: drain ended twice`);
    this.#heldBy--;
    if (this.#heldBy > 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { submit } of waiting) submit();
    this.#observer.drained?.(false);
  }

  whenIdle(): MaybePromise<void> {
    const owners = this.#observer.whenIdle?.();
    const own = this.#inFlight.whenIdle();
    return owners === undefined ? own : owners.then(() => own);
  }

  childResized(): void {
    this.#observer.resized?.(this.size);
  }

  /** A request that changes the node and is rare enough for a closure. */
  #change<T>(submit: () => MaybePromise<T>): MaybePromise<T> {
    try {
      const pending = submit();
      return isPromise(pending) ? this.#track(pending, 'write') : pending;
    } catch (error) {
      this.#observer.failed?.('write', error);
      throw error;
    }
  }

  #later<T>(submit: () => MaybePromise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const submitNow = (): void => {
        try {
          resolve(submit());
        } catch (error) {
          reject(error);
        }
      };
      this.#waiting.push({ submit: submitNow, reject });
    });
  }

  #track<T>(pending: Promise<T>, operation?: 'read' | 'write'): Promise<T> {
    this.#inFlight.begin();
    return pending.then(
      (value) => {
        this.#inFlight.end();
        return value;
      },
      (error: unknown) => {
        this.#inFlight.end();
        if (operation !== undefined) this.#observer.failed?.(operation, error);
        throw error;
      },
    );
  }
}
