// SPDX-License-Identifier: MIT
/**
 * What the earlier changes of a transaction will have done when a later one is prepared, as far as it
 * has to be known to check the later one before anything is done. What is not known is passed over.
 */
import { BlockError } from '../base/errors.js';
import type { BlockNode } from './node.js';

/** `added`: can be used, but is not there yet. `busy`: removed, or taken by a job. */
type BitmapFate = 'added' | 'busy';

export class ChangesAhead {
  readonly #comingNodes = new Set<string>();
  readonly #images = new Set<string>();
  readonly #overlays = new Map<BlockNode, string | undefined>();
  readonly #bitmaps = new Map<string, BitmapFate>();
  readonly #jobs = new Map<string, string>();
  readonly #targets = new Set<BlockNode>();
  #moves = false;

  /** The links between nodes will not be what they are now. */
  get movesNodes(): boolean {
    return this.#moves;
  }

  noteMove(): void {
    this.#moves = true;
  }

  /** A node that is opened for the transaction. @throws BlockError DF_EXISTS when it has the name of another */
  noteNode(name: string): void {
    if (this.#comingNodes.has(name)) {
      throw new BlockError('DF_EXISTS', 'New overlay node-name already in use');
    }
    this.#comingNodes.add(name);
  }

  /** A file that is made. @throws BlockError DF_IN_USE when another image of the transaction has its name */
  noteImage(filename: string): void {
    if (this.#images.has(filename)) {
      throw new BlockError('DF_IN_USE', `Two images of the transaction are called '${filename}'`);
    }
    this.#images.add(filename);
  }

  /** A node that will be there, and is not yet, can't be looked at. */
  isComing(name: string): boolean {
    return this.#comingNodes.has(name);
  }

  /**
   * @param overlay its name, where it has one already
   * @throws BlockError DF_IN_USE when the node has another overlay by then
   */
  noteOverlay(node: BlockNode, overlay: string | undefined): void {
    if (this.#overlays.has(node)) {
      const above = this.#overlays.get(node);
      const user = above === undefined ? 'another overlay' : `'${above}'`;
      const message = `Node '${node.name}' is busy: node is used as backing hd of ${user}`;
      throw new BlockError('DF_IN_USE', message, { node: node.name });
    }
    this.#overlays.set(node, overlay);
    this.#moves = true;
  }

  /**
   * A job that copies the node. @param node its name
   * @throws BlockError DF_EXISTS when another job of the transaction has the id
   */
  noteJob(id: string, node: string): void {
    if (this.#jobs.has(id)) throw new BlockError('DF_EXISTS', `Job ID '${id}' already in use`);
    this.#jobs.set(id, node);
  }

  /** A job's filter, or an overlay, will have come above the node. */
  isCovered(node: BlockNode): boolean {
    return this.#overlays.has(node) || [...this.#jobs.values()].includes(node.name);
  }

  /** A node that a backup writes to. @throws BlockError DF_IN_USE when another one does */
  noteTarget(node: BlockNode): void {
    if (this.#targets.has(node)) {
      const message = `Node '${node.name}' is busy: block device is in use by block job: backup`;
      throw new BlockError('DF_IN_USE', message, { node: node.name });
    }
    this.#targets.add(node);
  }

  noteBitmap(node: string, name: string, fate: BitmapFate): void {
    this.#bitmaps.set(keyOf(node, name), fate);
  }

  /**
   * @returns true when the bitmap is to be made by an earlier change, so that there is nothing to look at
   * @throws BlockError DF_IN_USE when an earlier change has taken it
   */
  isComingBitmap(node: string, name: string): boolean {
    if (this.isComing(node)) return true;
    const fate = this.#bitmaps.get(keyOf(node, name));
    if (fate !== 'busy') return fate === 'added';
    throw new BlockError(
      'DF_IN_USE',
      `Bitmap '${name}' is currently in use by another operation and cannot be used`,
    );
  }
}

function keyOf(node: string, name: string): string {
  return JSON.stringify([node, name]);
}
