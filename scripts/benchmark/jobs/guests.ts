// SPDX-License-Identifier: MIT
/** What users of the source do to it: libnbd's shell writes, so no code of ours is in their way. */
import { once } from 'node:events';
import { run, start, stop } from '../processes.js';
import type { WriterLoad } from './cells.js';

/** What an incremental backup's bitmap marks at once, bytes; the default granularity of both daemons. */
const GRANULE = 65536;

/** Writes new random data to a share of an export, in granules of the bitmap that are spread over it. */
export async function dirtyShare(uri: string, share: number): Promise<void> {
  const script = `
import os, random
granules = h.get_size() // ${GRANULE}
for granule in random.Random(1).sample(range(granules), max(1, round(granules * ${share}))):
    h.pwrite(os.urandom(${GRANULE}), granule * ${GRANULE})
h.flush()
`;
  await run('nbdsh', ['-u', uri, '-c', script]);
}

/** Writes when it is told to, until it is told to stop; each by a line of its input. */
function writerScript({ blockSize, bytesPerSecond, depth }: WriterLoad): string {
  return `
import random, select, sys, time
errors = []
def completed(error):
    if error.value != 0:
        errors.append(error.value)
    return 1
generator = random.Random(2)
blocks = h.get_size() // ${blockSize}
print('connected', flush=True)
sys.stdin.readline()
begin = time.monotonic()
written = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    early = begin + written / ${bytesPerSecond} - time.monotonic()
    if h.aio_in_flight() >= ${depth} or early > 0:
        h.poll(10 if early <= 0 else min(10, max(1, int(early * 1000))))
        continue
    block = generator.randbytes(${blockSize})
    h.aio_pwrite(block, generator.randrange(blocks) * ${blockSize}, completion=completed)
    written += ${blockSize}
seconds = time.monotonic() - begin
while h.aio_in_flight() > 0:
    h.poll(-1)
h.flush()
if errors:
    raise SystemExit(f'writing failed with errors {set(errors)}')
print(written / seconds)
`;
}

/** A client that is connected and writes from `begin` to `end`. */
export interface GuestWriter {
  begin(): void;
  /** Resolves when every write is acknowledged and flushed. @returns bytes a second that it wrote */
  end(): Promise<number>;
  /** Ends it at any time; nothing happens when it has ended. */
  kill(): Promise<void>;
}

export async function connectWriter(uri: string, load: WriterLoad): Promise<GuestWriter> {
  const args = ['-u', uri, '-c', writerScript(load)];
  const child = start('nbdsh', args, { stdin: 'pipe' });
  let said = '';
  const { stdin, stdout, stderr } = child;
  if (stdin === null || stdout === null) throw new Error('nbdsh has no pipes');
  stdin.on('error', () => {}); // when it ended early, which its status tells
  stderr?.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  let output = '';
  const connected = new Promise<void>((resolve) => {
    stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString();
      if (output.includes('connected\n')) resolve();
    });
  });
  const closed = once(child, 'close').then(([code]) => Number(code));
  const failed = closed.then(() => {
    throw new Error(`the writer ended: ${said}`);
  });
  await Promise.race([connected, failed]);
  return {
    begin: () => void stdin.write('begin\n'),
    async end() {
      stdin.end('end\n');
      if ((await closed) !== 0) throw new Error(`the writer failed: ${said}`);
      return Number(output.trim().split('\n').at(-1));
    },
    kill: () => stop(child),
  };
}
