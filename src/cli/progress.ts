// SPDX-License-Identifier: MIT
/** One line on a terminal that shows how far something is, how fast, and how long it will take. */
import type { WriteStream } from 'node:tty';

const BAR_WIDTH = 30;
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export class ProgressBar {
  readonly #started = performance.now();
  #shown = false;

  constructor(
    private readonly stream: NodeJS.WriteStream & Partial<WriteStream>,
    private readonly title: string,
  ) {}

  /** @param done bytes, of `total` as known now */
  show(done: number, total: number): void {
    if (this.stream.isTTY !== true) return;
    const part = total > 0 ? Math.min(1, done / total) : 0;
    const filled = Math.round(part * BAR_WIDTH);
    const seconds = Math.max((performance.now() - this.#started) / 1000, 0.001);
    const rate = done / seconds;
    const left = rate > 0 ? Math.ceil((total - done) / rate) : 0;
    const bar = `${'█'.repeat(filled)}${'░'.repeat(BAR_WIDTH - filled)}`;
    const percent = `${Math.floor(part * 100)}%`.padStart(4);
    this.stream.write(
      `\r${this.title} ${bar}${percent}  ${formatBytes(rate)}/s  ${left} s left\u001b[K`,
    );
    this.#shown = true;
  }

  end(): void {
    if (this.#shown) this.stream.write('\n');
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
