// SPDX-License-Identifier: MIT
/** Events: from where they happen to all who listen, monitors above all. */
import type { DataOf, EventDefinition, ObjectType } from '../../protocol/qapi/types.js';
import type { WritableJson } from './json-writer.js';

/** An event as it goes over the wire. */
export interface QmpEvent {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  readonly event: string;
  readonly data?: { readonly [key: string]: WritableJson };
}

export type EventListener = (event: QmpEvent) => void;

/** An event that is held back, at most one for each kind and key. */
interface RateState {
  readonly timer: NodeJS.Timeout;
  waiting: QmpEvent | undefined;
}

/** Wall clock time, microseconds since 1970. */
export type WallClock = () => number;

const systemClock: WallClock = () => Date.now() * 1000;

export class EventHub {
  readonly #listeners = new Set<EventListener>();
  readonly #rates = new Map<string, RateState>();
  readonly #clock: WallClock;

  constructor(clock: WallClock = systemClock) {
    this.#clock = clock;
  }

  /** Calls `listener` for every event from now on, until the returned function is called. */
  subscribe(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Tells of an event that has just happened. Never throws because of its data or a listener's speed. */
  emit<const D extends ObjectType>(
    definition: EventDefinition<D>,
    ...data: Record<never, never> extends DataOf<EventDefinition<D>>
      ? [data?: DataOf<EventDefinition<D>>]
      : [data: DataOf<EventDefinition<D>>]
  ): void {
    const micros = this.#clock();
    const given = data[0] as { readonly [key: string]: WritableJson } | undefined;
    const event: QmpEvent = {
      timestamp: { seconds: Math.floor(micros / 1e6), microseconds: micros % 1e6 },
      event: definition.name,
      ...(given !== undefined && Object.keys(given).length > 0 ? { data: given } : {}),
    };
    const { rateLimitMs, rateKey } = definition;
    if (rateLimitMs === undefined) this.#publish(event);
    else this.#limit(event, rateLimitMs, rateKey === undefined ? '' : String(given?.[rateKey]));
  }

  /** Drops what is held back, and its timers. */
  close(): void {
    for (const { timer } of this.#rates.values()) clearTimeout(timer);
    this.#rates.clear();
    this.#listeners.clear();
  }

  /** The first event goes out at once; of those that follow in the interval, the last one at its end. */
  #limit(event: QmpEvent, intervalMs: number, value: string): void {
    const key = `${event.event} ${value}`;
    const state = this.#rates.get(key);
    if (state !== undefined) {
      state.waiting = event;
      return;
    }
    this.#publish(event);
    const timer = setTimeout(() => {
      const waiting = this.#rates.get(key)?.waiting;
      this.#rates.delete(key);
      if (waiting !== undefined) this.#limit(waiting, intervalMs, value);
    }, intervalMs);
    timer.unref();
    this.#rates.set(key, { timer, waiting: undefined });
  }

  #publish(event: QmpEvent): void {
    for (const listener of this.#listeners) listener(event);
  }
}
