// SPDX-License-Identifier: MIT
/** Where the jobs copy to: servers of a fresh image over TCP, each reached directly or by the relay. */
import { createHash } from 'node:crypto';
import { createReadStream, statSync } from 'node:fs';
import { mkdir, open, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { run, start } from '../processes.js';
import {
  EXPORT_NAME,
  type RunningServer,
  SERVERS,
  type ServerKind,
  startServer,
} from '../servers.js';

function serverOf(name: string): ServerKind {
  const kind = SERVERS.find((server) => server.name === name);
  if (kind === undefined) throw new Error(`no server is called '${name}'`);
  return kind;
}

/** A disk in the memory of nbdkit; of the image only the size counts. */
const NBDKIT_MEMORY: ServerKind = {
  ...serverOf('nbdkit'),
  name: 'nbdkit memory',
  command(images, endpoint) {
    if ('path' in endpoint) throw new Error('a target is reached over TCP');
    const size = statSync(images[0]?.path ?? '').size;
    const where = ['-i', endpoint.host, '-p', `${endpoint.port}`, '-e', EXPORT_NAME];
    return { program: 'nbdkit', args: ['-f', ...where, 'memory', `${size}`] };
  },
};

/** Both daemons that run jobs. */
export const JOB_DAEMONS: readonly ServerKind[] = [
  serverOf('diskferryd'),
  serverOf('qemu-storage-daemon'),
];

/**
 * Flushes of a target do nothing: one daemon flushes before a mirror is READY, the other before a
 * backup ends, and the disk below the image would be most of what is measured.
 */
function withoutFlush(kind: ServerKind): ServerKind {
  return {
    ...kind,
    command(images, endpoint) {
      const { program, args } = kind.command(images, endpoint);
      const changed = (arg: string): string =>
        arg.startsWith('driver=file,') ? `${arg},cache.no-flush=on` : arg;
      return { program, args: args.map(changed) };
    },
  };
}

export const TARGETS: readonly ServerKind[] = [...JOB_DAEMONS.map(withoutFlush), NBDKIT_MEMORY];

export interface Target {
  readonly uri: string;
  readonly port: number;
  /** SHA-256 of the whole export, as another program reads it, without the relay. */
  hash(): Promise<string>;
  stop(): Promise<void>;
}

/** Serves a disk of zeroes. @param size bytes */
export async function startTarget(
  name: string,
  { size, dir }: { readonly size: number; readonly dir: string },
): Promise<Target> {
  const kind = TARGETS.find((target) => target.name === name);
  if (kind === undefined) throw new Error(`no target is called '${name}'`);
  const image = join(dir, 'target.raw');
  await mkdir(dir, { recursive: true });
  await rm(image, { force: true });
  const file = await open(image, 'w');
  await file.truncate(size);
  await file.close();
  const server: RunningServer = await startServer(kind, { images: [image], transport: 'tcp', dir });
  const uri = server.uri(EXPORT_NAME);
  return {
    uri,
    port: Number(new URL(uri).port),
    hash: () => hashExport(uri),
    async stop() {
      await server.stop();
      await rm(image, { force: true });
    },
  };
}

/** Reads an export with nbdcopy. */
async function hashExport(uri: string): Promise<string> {
  const child = start('nbdcopy', [uri, '-']);
  const closed = new Promise<number | null>((resolve) => child.once('close', resolve));
  let said = '';
  child.once('error', (error) => {
    said += error.message;
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const hash = createHash('sha256');
  child.stdout?.on('data', (chunk: Buffer) => hash.update(chunk));
  if ((await closed) !== 0) throw new Error(`nbdcopy of ${uri} failed: ${said}`);
  return hash.digest('hex');
}

/** What `hashFile` has found, by path, size and time of the last change. */
const hashes = new Map<string, string>();

/** SHA-256 of a file; one that has not changed since is not read again. */
export async function hashFile(path: string): Promise<string> {
  const { size, mtimeNs } = await stat(path, { bigint: true });
  const key = `${path} ${size} ${mtimeNs}`;
  const known = hashes.get(key) ?? (await readHash(path));
  hashes.set(key, known);
  return known;
}

async function readHash(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(chunk as Buffer);
  }
  return hash.digest('hex');
}

/** Makes a target equal to an image, before a job brings it up to date. */
export async function fillTarget(image: string, { uri }: Target): Promise<void> {
  await run('nbdcopy', [image, uri]);
}
