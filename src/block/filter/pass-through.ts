// SPDX-License-Identifier: MIT
/** What filters have in common: everything goes to the one child as it is. */
import path from 'node:path';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type {
  BlockDriver,
  BlockLimits,
  DriverFeatures,
  Extent,
  PreallocationMode,
  RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import { PERM_RESIZE } from '../permissions.js';

/** FUA is passed on (the child's node makes it true); the rest is what the child can do. */
class ChildFeatures implements DriverFeatures {
  readonly fua = true;
  readonly backing = false;
  readonly #child: () => ChildEdge;

  constructor(child: () => ChildEdge) {
    this.#child = child;
  }

  get writeZeroes(): boolean {
    return this.#child().node.driver.features.writeZeroes;
  }

  get discard(): boolean {
    return this.#child().node.driver.features.discard;
  }

  get multiConn(): boolean {
    return this.#child().node.driver.features.multiConn;
  }
}

/** A filter that changes nothing; filters override what they are there for. */
export class PassThroughDriver implements BlockDriver {
  readonly features: DriverFeatures;

  constructor(
    readonly name: string,
    protected child: ChildEdge,
  ) {
    this.features = new ChildFeatures(() => this.child);
  }

  get limits(): BlockLimits {
    return this.child.limits;
  }

  get size(): number {
    return this.child.size;
  }

  get readOnly(): boolean {
    return this.child.node.readOnly;
  }

  get filename(): string {
    return this.child.node.driver.filename;
  }

  read(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.child.read(offset, buffer, flags);
  }

  write(offset: number, buffer: Buffer, flags: RequestFlags): MaybePromise<void> {
    return this.child.write(offset, buffer, flags);
  }

  writeZeroes(offset: number, length: number, flags: RequestFlags): MaybePromise<void> {
    return this.child.writeZeroes(offset, length, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.child.discard(offset, length);
  }

  blockStatus(offset: number, length: number): MaybePromise<Extent> {
    return { length, flags: 0, delegate: this.child, hostOffset: offset };
  }

  truncate(
    size: number,
    options: { exact: boolean; preallocation: PreallocationMode },
  ): Promise<void> {
    return this.child.truncate(size, options);
  }

  close(): MaybePromise<void> {}
}

/**
 * Read for a filter that asks for more alignment than its child: what the padding adds past the
 * child's end reads as zeroes.
 */
export function readPadded(
  child: ChildEdge,
  offset: number,
  buffer: Buffer,
  flags: RequestFlags,
): MaybePromise<void> {
  const inside = Math.min(buffer.byteLength, Math.max(child.size - offset, 0));
  if (inside === buffer.byteLength) return child.read(offset, buffer, flags);
  buffer.fill(0, inside);
  if (inside > 0) return child.read(offset, buffer.subarray(0, inside), flags);
}

/** Bytes of an aligned request that the child can take: padding past its end is cut off. */
export function lengthInside(child: ChildEdge, offset: number, length: number): number {
  if (offset + length <= child.size || (child.taken & PERM_RESIZE) !== 0) return length;
  return Math.max(child.size - offset, 0);
}

/** A "json:" description of a filter and its children, as queries show it. */
export function jsonFilename(
  driver: string,
  children: Readonly<Record<string, ChildEdge>>,
  options: Readonly<Record<string, unknown>> = {},
): string {
  const described = Object.entries(children).map(([key, edge]) => [key, describeChild(edge)]);
  return `json:${JSON.stringify({ driver, ...options, ...Object.fromEntries(described) })}`;
}

/**
 * A child in such a description, from which it can be opened again, wherever that is: a format above
 * its file, and files by their whole path.
 */
export function describeChild({ node }: ChildEdge): unknown {
  const { name, filename } = node.driver;
  if (filename.startsWith('json:')) return JSON.parse(filename.slice('json:'.length));
  const file = node.children.get('file');
  if (file !== undefined) return { driver: name, file: describeChild(file) };
  if (filename === '') return { driver: name };
  return { driver: name, filename: hasScheme(filename) ? filename : path.resolve(filename) };
}

/** A name such as nbd://host/export. */
function hasScheme(filename: string): boolean {
  return /^[^/:]+:/.test(filename);
}
