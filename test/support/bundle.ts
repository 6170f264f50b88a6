// SPDX-License-Identifier: MIT
/** A program of the tests' own, as one file that node runs by itself. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const { resolve } = createRequire(import.meta.url);

/** @param entry a file of this folder, with its extension @param outfile where the program goes */
export async function bundleProgram(entry: string, outfile: string): Promise<void> {
  await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    outfile,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'esm',
    logLevel: 'warning',
    plugins: [
      {
        name: 'packages stay where they are installed',
        setup({ onResolve }) {
          onResolve({ filter: /^[^./]/ }, ({ path }) => {
            const own = path.startsWith('node:') ? path : resolve(path);
            return { path: own, external: true };
          });
        },
      },
    ],
  });
}
