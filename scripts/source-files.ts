// SPDX-License-Identifier: MIT
import { readdirSync } from 'node:fs';
import path from 'node:path';

/** TypeScript files below the folders of `root`, relative to it, in order of their names. */
export function sourceFiles(root: string, folders: readonly string[]): string[] {
  return folders
    .flatMap((folder) =>
      readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' }).map((file) =>
        path.posix.join(folder, file),
      ),
    )
    .filter((file) => /\.c?ts$/.test(file))
    .sort();
}
