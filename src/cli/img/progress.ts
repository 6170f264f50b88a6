// SPDX-License-Identifier: MIT
/**
 * How far a command is: where `-p` asks for that and `-q` does not forbid it, and once for each
 * SIGUSR1 otherwise.
 */
import { ProgressBar, type ProgressStream } from '../progress.js';

interface ProgressWish {
  readonly progress?: boolean | undefined;
  readonly quiet?: boolean | undefined;
}

type Show = (done: number, total: number) => void;

/** qemu-img tells of steps that are larger than this, percent. */
const STEP_PERCENT = 2;

/** Runs the work with what it tells its progress to, in bytes; the line is left when it ends. */
export async function withProgress<T>(
  title: string,
  { progress, quiet }: ProgressWish,
  work: (show: Show) => Promise<T>,
): Promise<T> {
  const { stdout, stderr } = process;
  if (progress !== true || quiet === true) return whenAsked(stderr, work);
  if (stdout.isTTY !== true) return asPercents(stdout, work);
  const bar = new ProgressBar(stdout, title);
  try {
    return await work((done, total) => bar.show(done, total));
  } finally {
    bar.end();
  }
}

/** One line for each SIGUSR1, as qemu-img has it. */
async function whenAsked<T>(stream: ProgressStream, work: (show: Show) => Promise<T>): Promise<T> {
  let asked = false;
  const ask = (): void => {
    asked = true;
  };
  process.on('SIGUSR1', ask);
  try {
    return await work((done, total) => {
      if (asked) stream.write(`${percentText(percentOf(done, total))}\n`);
      asked = false;
    });
  } finally {
    process.off('SIGUSR1', ask);
  }
}

/** What programs read that run qemu-img: `    (12.50/100%)` and a carriage return, a newline last. */
async function asPercents<T>(stream: ProgressStream, work: (show: Show) => Promise<T>): Promise<T> {
  let shown = 0;
  const show = (percent: number): void => {
    shown = percent;
    stream.write(`${percentText(percent)}\r`);
  };
  show(0);
  try {
    return await work((done, total) => {
      const percent = percentOf(done, total);
      if (percent > shown + STEP_PERCENT || (percent === 100 && shown < 100)) show(percent);
    });
  } finally {
    stream.write('\n');
  }
}

const percentOf = (done: number, total: number): number =>
  total > 0 ? Math.min(100, (done / total) * 100) : 100;

const percentText = (percent: number): string => `    (${percent.toFixed(2)}/100%)`;
