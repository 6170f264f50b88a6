// SPDX-License-Identifier: MIT
/** Bytes a second, smoothly: short bursts, no long sleeps. */

/** Longest burst after idling, milliseconds' worth of the rate. */
const BURST_MS = 50;

export class RateLimit {
  #bytesPerMs: number;
  #readyAtMs = 0;

  /** @param bytesPerSecond 0 (or more than a machine can do) means no limit */
  constructor(
    bytesPerSecond: number,
    private readonly nowMs: () => number,
  ) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  set bytesPerSecond(value: number) {
    this.#bytesPerMs = value / 1000;
    this.#readyAtMs = this.nowMs();
  }

  get limited(): boolean {
    return this.#bytesPerMs > 0;
  }

  /** Counts bytes that are being sent now. */
  spend(bytes: number): void {
    if (!this.limited) return;
    const earliest = this.nowMs() - BURST_MS;
    this.#readyAtMs = Math.max(this.#readyAtMs, earliest) + bytes / this.#bytesPerMs;
  }

  /** Milliseconds until the next bytes may go; 0: at once. */
  delayMs(): number {
    if (!this.limited) return 0;
    return Math.max(0, this.#readyAtMs - this.nowMs());
  }

  /** Bytes that should go at a time, so that the rate shows no steps: about 20 ms' worth. */
  sliceLength(max: number, granule: number): number {
    if (!this.limited) return max;
    const slice = Math.floor((this.#bytesPerMs * 20) / granule) * granule;
    return Math.min(max, Math.max(granule, slice));
  }
}
