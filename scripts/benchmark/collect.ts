// SPDX-License-Identifier: MIT
/** What the benchmarks of jobs and of images do alike with their results. */
import { readFile, writeFile } from 'node:fs/promises';

/** The entry of a key, made when it is not there. */
export function entryOf<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key);
  if (found !== undefined) return found;
  const made = make();
  map.set(key, made);
  return made;
}

/**
 * Puts text between two markers of a file, `<!-- NAME -->` and `<!-- /NAME -->`.
 * @throws Error when the file lacks them
 */
async function putBetween(path: string, name: string, text: string): Promise<void> {
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const old = await readFile(path, 'utf8');
  const from = old.indexOf(begin);
  const to = old.indexOf(end);
  if (from < 0 || to < from) {
    throw new Error(`${path} has no ${begin} with a ${end} after it`);
  }
  const head = old.slice(0, from + begin.length);
  await writeFile(path, `${head}\n\n${text}\n${old.slice(to)}`);
}

/** Where a report and its summary go. */
export interface Destinations {
  /** File for the report; standard output when absent. */
  readonly out: string | undefined;
  /** File with the markers between which the summary goes. */
  readonly readme: string | undefined;
}

/** @param name of the markers for the summary */
export async function publish(
  { out, readme }: Destinations,
  name: string,
  { report, summary }: { readonly report: string; readonly summary: string },
): Promise<void> {
  if (out === undefined) process.stdout.write(report);
  else await writeFile(out, report);
  if (readme !== undefined) await putBetween(readme, name, summary);
}
