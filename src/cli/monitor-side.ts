// SPDX-License-Identifier: MIT
/** One of the two daemons of a migration, as its monitor shows it. */
import type { JsonObject, JsonValue } from '../../protocol/qapi/types.js';
import type { QmpClient } from '../qmp/client.js';
import type { WritableJson } from '../qmp/json-writer.js';

/** A daemon that says nothing for so long is given up, milliseconds. */
const ANSWER_TIMEOUT_MS = 60_000;
/** Looks for the end of an export, and the time between them, milliseconds. */
const EXPORT_GONE_LOOKS = 200;
const EXPORT_GONE_POLL_MS = 25;

/** As `query-named-block-nodes` has it. */
export interface BitmapState {
  readonly name: string;
  /** Bytes. */
  readonly granularity: number;
  /** Dirty bytes, in whole granules. */
  readonly count: number;
  readonly recording: boolean;
  readonly persistent: boolean;
  readonly busy: boolean;
  readonly inconsistent: boolean;
}

export interface NodeState {
  /** Bytes. */
  readonly size: number;
  /** Those with a name. */
  readonly bitmaps: readonly BitmapState[];
}

export type Arguments = { readonly [name: string]: WritableJson };

export interface Action {
  readonly type: string;
  readonly data: Arguments;
}

type MonitorClient = Pick<QmpClient, 'execute' | 'close'>;

export class MonitorSide {
  readonly #client: MonitorClient;
  /** For error texts: 'the source'. */
  readonly #who: string;
  #undo: (() => Promise<unknown>)[] = [];

  constructor(client: MonitorClient, who: string) {
    this.#client = client;
    this.#who = who;
  }

  /** @throws Error that says who refused what; a daemon that does not answer is disconnected */
  async run(command: string, args?: Arguments): Promise<JsonValue> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#client.close();
    }, ANSWER_TIMEOUT_MS);
    try {
      return await this.#client.execute(command, args);
    } catch (error) {
      const what = late
        ? `has not answered for ${ANSWER_TIMEOUT_MS / 1000} s`
        : `${command} failed`;
      throw new Error(`${this.#who}: ${what}`, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  /** All of it at one moment, or none. */
  async transaction(actions: readonly Action[]): Promise<void> {
    await this.run('transaction', { actions: actions as readonly (Action & Arguments)[] });
  }

  /** @throws Error when there is no such node */
  async node(name: string): Promise<NodeState> {
    const nodes = (await this.run('query-named-block-nodes', { flat: true })) as JsonObject[];
    const found = nodes.find((node) => node['node-name'] === name);
    if (found === undefined) throw new Error(`${this.#who} has no node '${name}'`);
    const bitmaps = (found['dirty-bitmaps'] ?? []) as JsonObject[];
    return {
      size: Number((found.image as JsonObject)['virtual-size']),
      bitmaps: bitmaps
        .filter(({ name }) => typeof name === 'string')
        .map((shown) => ({
          name: String(shown.name),
          granularity: Number(shown.granularity),
          count: Number(shown.count),
          recording: shown.recording === true,
          persistent: shown.persistent === true,
          busy: shown.busy === true,
          inconsistent: shown.inconsistent === true,
        })),
    };
  }

  /** Of the bitmap's content: equal for bitmaps of one size and granularity with the same marks. */
  async digest(node: string, name: string): Promise<string> {
    const result = await this.run('x-debug-block-dirty-bitmap-sha256', { node, name });
    return String((result as JsonObject).sha256);
  }

  /** Its clients are disconnected. Returns when it is gone, so that its node and bitmaps are free. */
  async removeExport(id: string): Promise<void> {
    await this.run('block-export-del', { id, mode: 'hard' });
    for (let look = 0; look < EXPORT_GONE_LOOKS; look++) {
      const exports = (await this.run('query-block-exports')) as JsonObject[];
      if (!exports.some((shown) => shown.id === id)) return;
      await new Promise((resolve) => setTimeout(resolve, EXPORT_GONE_POLL_MS));
    }
    throw new Error(`${this.#who}: the export '${id}' does not end`);
  }

  /** Notes how to take back what is about to be made; what was never made can't be taken back. */
  later(undo: () => Promise<unknown>): void {
    this.#undo.push(undo);
  }

  /** What was made stays. */
  forget(): void {
    this.#undo = [];
  }

  /** Takes back what was noted, the last first, as far as that goes. */
  async takeBack(): Promise<void> {
    const all = this.#undo;
    this.#undo = [];
    for (const undo of all.reverse()) await undo().catch(() => undefined);
  }
}
