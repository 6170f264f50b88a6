// SPDX-License-Identifier: MIT
/** Signals that call a command off: the first one in order, a later one at once. */
import os from 'node:os';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** A terminal, or a program that watches over us, may send one signal twice. Milliseconds. */
const SAME_SIGNAL_MS = 1000;

export class Interruption {
  /** The signal that has come. */
  signal: NodeJS.Signals | undefined;
  #act: (() => void) | undefined;
  #takenAt = 0;

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#take);
  }

  /** What a shell makes of a program that the signal ends. */
  get exitStatus(): number {
    return this.signal === undefined ? 0 : 128 + os.constants.signals[this.signal];
  }

  /** Calls `act` when the signal comes; now if it has come already. */
  onSignal(act: () => void): void {
    this.#act = act;
    if (this.signal !== undefined) act();
  }

  stopListening(): void {
    for (const signal of SIGNALS) process.off(signal, this.#take);
  }

  readonly #take = (signal: NodeJS.Signals): void => {
    const now = performance.now();
    if (this.signal !== undefined) {
      if (now - this.#takenAt > SAME_SIGNAL_MS) process.exit(this.exitStatus);
      return;
    }
    this.signal = signal;
    this.#takenAt = now;
    this.#act?.();
  };
}
