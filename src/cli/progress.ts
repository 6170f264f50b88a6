// SPDX-License-Identifier: MIT
/**
 * How far something is, how fast, and how long it will take: one line that changes on a terminal,
 * a line now and then elsewhere.
 */

const BAR_WIDTH = 30;
/** Lines that are no terminal's, in the course of a whole run. */
const LINES = 4;
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** What a bar needs of the stream that it is drawn on. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

export class ProgressBar {
  readonly #started: number;
  #shown = false;
  #doneBefore = 0;
  #lines = 0;

  /** @param now milliseconds, for the rate */
  constructor(
    private readonly stream: ProgressStream,
    private readonly title: string,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#started = now();
  }

  /** @param done bytes that are done when the bar begins to look, and so tell nothing of the rate */
  beginAt(done: number): void {
    this.#doneBefore = done;
  }

  /** @param done bytes, of `total` as known now */
  show(done: number, total: number): void {
    const part = total > 0 ? Math.min(1, done / total) : 0;
    const rate =
      Math.max(0, done - this.#doneBefore) / Math.max((this.now() - this.#started) / 1000, 0.001);
    const speed = rate > 0 ? `  ${formatBytes(rate)}/s` : '';
    const percent = `${Math.floor(part * 100)}%`.padStart(4);
    if (this.stream.isTTY !== true) {
      if (Math.floor(part * LINES) <= this.#lines) return;
      this.#lines = Math.floor(part * LINES);
      this.stream.write(`${this.title} ${percent}${speed}\n`);
      return;
    }
    const filled = Math.round(part * BAR_WIDTH);
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR_WIDTH - filled)}`;
    const left = rate > 0 ? `${Math.ceil((total - done) / rate)} s left` : '';
    this.stream.write(`\r${this.title} ${bar}${percent}${speed}  ${left}\u001b[K`);
    this.#shown = true;
  }

  /** Leaves the line as it is. */
  end(): void {
    if (this.#shown) this.stream.write('\n');
    this.#shown = false;
  }
}

/** 1536 → "1.5 KiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}
