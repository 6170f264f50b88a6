// SPDX-License-Identifier: MIT
/** What all benchmarks do alike: their folder, their failures, their reports. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A word on how far it is, for who waits. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/**
 * Runs a benchmark in a fresh folder, which is removed at the end, a signal's too.
 * @param parent folder for it; the system's temporary one when absent
 */
export async function inTempFolder(
  parent: string | undefined,
  work: (dir: string) => Promise<void>,
): Promise<void> {
  const dir = await mkdtemp(join(parent ?? tmpdir(), 'diskferry-bench-'));
  const removeAndLeave = (): void => {
    rm(dir, { recursive: true, force: true }).finally(() => process.exit(130));
  };
  process.once('SIGINT', removeAndLeave).once('SIGTERM', removeAndLeave);
  try {
    await work(dir);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** Runs one measurement; one that fails is noted, so that an hour's run is not lost. */
export async function attempt(
  failures: string[],
  what: string,
  action: () => Promise<void>,
): Promise<void> {
  try {
    await action();
  } catch (error) {
    const failure = `${what}: ${error instanceof Error ? error.message : String(error)}`;
    say(failure);
    failures.push(failure.split('\n')[0] ?? what);
  }
}

/** @throws Error when something could not be measured, after all reports are written */
export function checkComplete(failures: readonly string[]): void {
  if (failures.length === 0) return;
  throw new Error(`${failures.length} measurements failed, see the report`);
}

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
