// SPDX-License-Identifier: MIT
/** How far a command is, where `-p` asks for that and `-q` does not forbid it. */
import { ProgressBar } from '../progress.js';

interface ProgressWish {
  readonly progress?: boolean | undefined;
  readonly quiet?: boolean | undefined;
}

/** Runs the work with what it tells its progress to, in bytes; the line is left when it ends. */
export async function withProgress<T>(
  title: string,
  { progress, quiet }: ProgressWish,
  work: (show: (done: number, total: number) => void) => Promise<T>,
): Promise<T> {
  const bar = new ProgressBar(process.stderr, title);
  try {
    return await work((done, total) => {
      if (progress === true && quiet !== true) bar.show(done, total);
    });
  } finally {
    bar.end();
  }
}
