// SPDX-License-Identifier: MIT
/**
 * `diskferry migrate --bitmaps`: the dirty bitmaps of the source's node arrive at the target's.
 *
 * When the mirror is ready, and before its users are moved:
 *   1. Bitmaps on the target's node begin to record: everything that the mirror writes from now on.
 *   2. The source's bitmaps are copied, to bitmaps there that do not change any more.
 *   3. Their marks go by NBD to bitmaps of a node at the target that keeps no data: see `copyMarks`.
 *   4. In one transaction the target's bitmaps get their names: what 1 and 3 have.
 * A write that is not among the marks of 2 has ended after it, so the mirror writes it to the target
 * after 1. Hence what has a bitmap's name at the target is never short of a mark, before the pivot
 * and after it, whoever dies when. It is only made with commands and requests that QEMU has as well.
 */

import { NBD_META_QEMU_DIRTY_BITMAP } from '../../protocol/nbd/constants.js';
import type { NbdTarget } from '../../protocol/nbd/uri.js';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { errorText } from '../base/error-text.js';
import { toError } from '../base/errors.js';
import { NbdClient } from '../nbd/client/client.js';
import type { QmpClient } from '../qmp/client.js';
import { copyMarks } from './bitmap-marks.js';
import { type Action, type BitmapState, MonitorSide } from './monitor-side.js';
import { connectMonitor } from './qmp.js';
import { type SourceServer, sourceServer } from './source-server.js';

/** An NBD server that is silent for so long is given up, milliseconds. */
const NBD_SILENCE_MS = 30_000;
/** Of the bitmap that shows what the mirror writes, bytes. */
const SEEN_GRANULARITY = 1024 * 1024;
/** What both programs answer when nothing but the last action was wrong. */
const ABORTED = 'Transaction aborted using Abort action';

export interface CarryOptions {
  /** Monitor of the source; stays the caller's. */
  readonly source: QmpClient;
  readonly from: string;
  readonly node: string;
  /** Where the mirror writes to. */
  readonly to: NbdTarget;
  /** Monitor of the daemon there. */
  readonly toMonitor: string;
  /** Node there that gets the bitmaps. Default: the one that is exported. */
  readonly toNode?: string | undefined;
  /** NBD server of the source. Default: what its monitor tells, or one that is started. */
  readonly fromNbd?: string | undefined;
  /** Begins the names of what is made on the way. */
  readonly tag: string;
  /** Throws when the migration has been called off. */
  readonly checkpoint: () => void;
}

/** A bitmap that travels, with the names of what helps it. */
interface Traveller extends BitmapState {
  /** At the source: its content at one moment. At the target's empty node: the same. */
  readonly copy: string;
  /** On either node: what was written since. Of those that record. */
  readonly since: string;
}

export class BitmapCarrier {
  readonly #options: CarryOptions;
  readonly #source: MonitorSide;
  readonly #target: MonitorSide;
  readonly #targetClient: QmpClient;
  /** At the target. */
  #node = '';
  #server: SourceServer | undefined;
  #travellers: readonly Traveller[] = [];

  /**
   * Finds out whether it can be done; nothing has changed when it can't.
   * @throws Error that says why not
   */
  static async open(options: CarryOptions): Promise<BitmapCarrier> {
    const client = await connectMonitor(options.toMonitor);
    const carrier = new BitmapCarrier(options, client);
    try {
      await carrier.#prepare();
      return carrier;
    } catch (error) {
      await carrier.close();
      throw error;
    }
  }

  private constructor(options: CarryOptions, client: QmpClient) {
    this.#options = options;
    this.#source = new MonitorSide(options.source, 'the source');
    this.#target = new MonitorSide(client, 'the target');
    this.#targetClient = client;
  }

  /** Names of what has arrived. */
  get names(): string[] {
    return this.#travellers.map(({ name }) => name);
  }

  /** Node at the target that has them. */
  get node(): string {
    return this.#node;
  }

  get #sourceAddress(): NbdTarget['address'] {
    if (this.#server === undefined) throw new Error('no NBD server of the source was looked for');
    return this.#server.address;
  }

  async #prepare(): Promise<void> {
    const { node, tag, to, toNode } = this.#options;
    const { bitmaps, size } = await this.#source.node(node);
    const usable = this.#usable(bitmaps);
    for (const { name, inconsistent } of bitmaps) {
      if (!inconsistent) continue;
      process.stderr.write(`diskferry: bitmap '${name}' is inconsistent and stays behind\n`);
    }
    if (usable.length === 0) throw new Error(`--bitmaps: node '${node}' has none to carry along`);
    this.#node = toNode ?? (await this.#exportedNode(to.exportName));
    const there = await this.#target.node(this.#node);
    if (there.size !== size) {
      throw new Error(
        `node '${this.#node}' there has ${there.size} bytes, '${node}' has ${size}: ` +
          '--to-node names the node that is to have the bitmaps',
      );
    }
    await this.#tryOut(usable);
    this.#server = await sourceServer(this.#source, this.#options);
    const seen = { node: this.#node, name: `${tag}-seen` };
    this.#target.later(() => this.#target.run('block-dirty-bitmap-remove', seen));
    await this.#target.run('block-dirty-bitmap-add', { ...seen, granularity: SEEN_GRANULARITY });
  }

  /** @throws Error when one of them can't be read just now */
  #usable(bitmaps: readonly BitmapState[]): BitmapState[] {
    const { node } = this.#options;
    for (const { name, busy } of bitmaps) {
      if (!busy) continue;
      throw new Error(`--bitmaps: bitmap '${name}' of '${node}' is in use by another operation`);
    }
    const usable = bitmaps.filter(({ inconsistent }) => !inconsistent);
    return usable.sort((left, right) => (left.name < right.name ? -1 : 1));
  }

  /** The node of the export that is migrated to. @throws Error when that can't be told */
  async #exportedNode(exportName: string): Promise<string> {
    const shown = (await this.#target.run('query-block-exports')) as JsonObject[];
    const exports = shown.filter(({ type }) => type === 'nbd');
    const [only] = exports;
    const found = exports.length === 1 ? only : exports.find(({ id }) => id === exportName);
    if (found !== undefined) return String(found['node-name']);
    throw new Error(
      `the target has ${exports.length} exports, none with the id '${exportName}': ` +
        '--to-node names the node that is to have the bitmaps',
    );
  }

  /** Adds the bitmaps in a transaction that undoes it. @throws Error when the target's node can't have them */
  async #tryOut(bitmaps: readonly BitmapState[]): Promise<void> {
    const additions = bitmaps.map((bitmap) => this.#addition(bitmap));
    try {
      await this.#target.transaction([...additions, { type: 'abort', data: {} }]);
    } catch (error) {
      if (errorText(toError(error)).includes(ABORTED)) return;
      const names = bitmaps.map(({ name }) => `'${name}'`).join(', ');
      throw new Error(`node '${this.#node}' there can't have the bitmaps ${names}`, {
        cause: error,
      });
    }
  }

  #addition({ name, granularity, persistent, recording }: BitmapState): Action {
    const data = { node: this.#node, name, granularity, persistent, disabled: !recording };
    return { type: 'block-dirty-bitmap-add', data };
  }

  /**
   * The mirror is ready: brings the bitmaps over. On success they are complete at the target, and
   * stay so whatever follows.
   * @throws Error when that failed
   */
  async transfer(): Promise<void> {
    const { node, tag, checkpoint } = this.#options;
    const { bitmaps, size } = await this.#source.node(node);
    await this.#checkWritten(size);
    const travellers = this.#usable(bitmaps).map((bitmap, index) => ({
      ...bitmap,
      copy: `${tag}-copy-${index}`,
      since: `${tag}-since-${index}`,
    }));
    checkpoint();
    await this.#record(this.#target, this.#node, travellers);
    await this.#record(this.#source, node, travellers, travellers);
    await this.#moveMarks(travellers, size);
    checkpoint();
    await this.#publish(travellers);
  }

  /** @throws Error when the mirror writes elsewhere: then its writes would not be recorded */
  async #checkWritten(size: number): Promise<void> {
    const { bitmaps } = await this.#target.node(this.#node);
    const seen = bitmaps.find(({ name }) => name === `${this.#options.tag}-seen`);
    if (seen !== undefined && seen.count >= size) return;
    throw new Error(
      `the disk was copied, but not all of it to node '${this.#node}' there: ` +
        '--to-node names the node that is to have the bitmaps',
    );
  }

  /** From now on what is written is marked; `copied` are kept as they are, at the same moment. */
  async #record(
    side: MonitorSide,
    node: string,
    travellers: readonly Traveller[],
    copied: readonly Traveller[] = [],
  ): Promise<void> {
    const actions: Action[] = [];
    const add = (data: { name: string; granularity: number; disabled: boolean }): void => {
      actions.push({ type: 'block-dirty-bitmap-add', data: { node, ...data } });
      side.later(() => side.run('block-dirty-bitmap-remove', { node, name: data.name }));
    };
    for (const { recording, since, granularity } of travellers) {
      if (recording) add({ name: since, granularity, disabled: false });
    }
    for (const { copy, name, granularity } of copied) {
      add({ name: copy, granularity, disabled: true });
      const data = { node, target: copy, bitmaps: [name] };
      actions.push({ type: 'block-dirty-bitmap-merge', data });
    }
    if (actions.length > 0) await side.transaction(actions);
  }

  /** Makes the node at the target whose bitmaps have the marks of the source's copies. */
  async #moveMarks(travellers: readonly Traveller[], size: number): Promise<void> {
    const { node, tag, to } = this.#options;
    const [source, target, marks] = [this.#source, this.#target, `${tag}-marks`];
    const copies = travellers.map(({ copy }) => copy);
    source.later(() => source.removeExport(marks));
    const shown = { type: 'nbd', id: marks, name: marks };
    await source.run('block-export-add', { ...shown, 'node-name': node, bitmaps: copies });
    target.later(() => target.run('blockdev-del', { 'node-name': marks }));
    await target.run('blockdev-add', { driver: 'null-co', 'node-name': marks, size });
    target.later(() => target.removeExport(marks));
    await target.run('block-export-add', { ...shown, 'node-name': marks, writable: true });
    const contexts = copies.map((copy) => `${NBD_META_QEMU_DIRTY_BITMAP}${copy}`);
    const from = await this.#connect(this.#sourceAddress, contexts);
    try {
      const into = await this.#connect(to.address, []);
      try {
        for (const traveller of travellers) await this.#moveOne(traveller, from, into);
      } finally {
        await into.close();
      }
    } finally {
      await from.close();
    }
  }

  #connect(address: NbdTarget['address'], metaContexts: string[]): Promise<NbdClient> {
    const exportName = `${this.#options.tag}-marks`;
    const patience = { connections: 1, stallTimeoutMs: NBD_SILENCE_MS };
    return NbdClient.connect({ address, exportName, metaContexts, ...patience });
  }

  /** @throws Error when not exactly the marks of the copy have arrived */
  async #moveOne(traveller: Traveller, from: NbdClient, into: NbdClient): Promise<void> {
    const { copy, granularity, name } = traveller;
    const { node, tag, checkpoint } = this.#options;
    const arrived = { node: `${tag}-marks`, name: copy };
    await this.#target.run('block-dirty-bitmap-add', { ...arrived, granularity });
    const context = `${NBD_META_QEMU_DIRTY_BITMAP}${copy}`;
    await copyMarks({ from, context, to: into, checkpoint });
    await this.#target.run('block-dirty-bitmap-disable', arrived);
    const sent = await this.#source.digest(node, copy);
    if (sent === (await this.#target.digest(arrived.node, copy))) return;
    throw new Error(`the marks of bitmap '${name}' did not arrive as they were sent`);
  }

  /** In one moment: the bitmaps come to be, with all that belongs into them. */
  async #publish(travellers: readonly Traveller[]): Promise<void> {
    const [node, marks] = [this.#node, `${this.#options.tag}-marks`];
    await this.#target.transaction(
      travellers.flatMap((traveller) => {
        const { name, copy, since, recording } = traveller;
        const sources = [
          { node: marks, name: copy },
          ...(recording ? [{ node, name: since }] : []),
        ];
        const data = { node, target: name, bitmaps: sources };
        return [this.#addition(traveller), { type: 'block-dirty-bitmap-merge', data }];
      }),
    );
    this.#travellers = travellers;
    const target = this.#target;
    await target.takeBack();
    for (const { name } of travellers) {
      target.later(() => target.run('block-dirty-bitmap-remove', { node, name }));
    }
    await this.#source.removeExport(marks);
    await this.#server?.stop();
  }

  /**
   * The users have moved: makes sure that the source's bitmaps have changed by its users' writes
   * alone while their copies were on the way. Those that somebody has changed otherwise are removed
   * from the target.
   * @returns their names
   * @throws Error when that can't be found out
   */
  async settle(): Promise<readonly string[]> {
    const { node } = this.#options;
    this.#target.forget();
    const { bitmaps } = await this.#source.node(node);
    const changed: string[] = [];
    for (const traveller of this.#travellers) {
      const { name, recording, copy, since } = traveller;
      const now = bitmaps.find((bitmap) => bitmap.name === name);
      if (now?.recording === recording && !now.busy) {
        const merge = { node, target: copy, bitmaps: [since] };
        if (recording) await this.#source.run('block-dirty-bitmap-merge', merge);
        const expected = await this.#source.digest(node, copy);
        if (expected === (await this.#source.digest(node, name))) continue;
      }
      changed.push(name);
    }
    for (const name of changed) {
      await this.#target.run('block-dirty-bitmap-remove', { node: this.#node, name });
    }
    this.#travellers = this.#travellers.filter(({ name }) => !changed.includes(name));
    return changed;
  }

  /**
   * It is not known whether the users have moved: what is complete at the target stays there.
   * @returns whether there are bitmaps
   */
  leave(): boolean {
    if (this.#travellers.length === 0) return false;
    this.#target.forget();
    return true;
  }

  /** Takes back what was made for this; and the target's bitmaps, unless they are to stay. */
  async close(): Promise<void> {
    await this.#target.takeBack();
    await this.#source.takeBack();
    await this.#server?.stop();
    this.#targetClient.close();
  }
}
