// SPDX-License-Identifier: MIT
/** A daemon with one export of each kind that the rules of the NBD specification need. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Daemon, startDaemon } from '../../support/daemon.js';
import { type ExportInfo, OPT, REP } from '../../support/nbd-wire.js';
import { runPeer } from '../../support/peers.js';
import { RawNbd } from '../../support/raw-nbd.js';
import { Scope, testScope } from '../../support/temp.js';

export const MIB = 1024 * 1024;

/**
 * Size of the exports `disk` and `ro`, bytes: a MiB of data, a MiB of hole, a MiB of data that
 * differs, a MiB of hole.
 */
export const DISK_SIZE = 4 * MIB;
/** Size of the export `odd`, which is no multiple of anything. */
export const ODD_SIZE = 1_000_003;
/** Size of the export `vast`, which reads as zeroes and forgets what is written. */
export const VAST_SIZE = 8 * 1024 ** 4;

/** What `disk` and `ro` hold at the start. */
export const DISK_CONTENT = Buffer.concat([
  Buffer.alloc(MIB, 0x11),
  Buffer.alloc(MIB),
  Buffer.alloc(MIB, 0x33),
  Buffer.alloc(MIB),
]);

export interface SpecServer {
  readonly daemon: Daemon;
  readonly socket: string;
  /** Folder with `disk.raw`, `ro.raw`, `odd.raw`. */
  readonly dir: string;
  close(): Promise<void>;
}

async function makeDisk(path: string): Promise<void> {
  await writeFile(path, DISK_CONTENT);
  // A file system may store zeroes as data; this makes them holes.
  await runPeer('fallocate', ['--dig-holes', path]);
}

/** Arguments for one writable node with its export, both of one name. */
export function writableExport(name: string, blockdev: string): string[] {
  const options = `type=nbd,id=export-${name},node-name=${name},name=${name},writable=on`;
  return ['--blockdev', `${blockdev},node-name=${name}`, '--export', options];
}

/** Starts the daemon with further arguments, or with the usual exports when there are none. */
export async function startSpecServer(
  further?: (dir: string) => readonly string[],
): Promise<SpecServer> {
  const scope = new Scope();
  try {
    return await startIn(scope, further);
  } catch (error) {
    await scope.close();
    throw error;
  }
}

async function startIn(
  scope: Scope,
  further?: (dir: string) => readonly string[],
): Promise<SpecServer> {
  const dir = await scope.tempDir();
  const socket = join(dir, 'nbd.sock');
  await makeDisk(join(dir, 'disk.raw'));
  await makeDisk(join(dir, 'ro.raw'));
  await writeFile(join(dir, 'odd.raw'), Buffer.alloc(ODD_SIZE, 0x44));
  const usual = (): string[] => [
    ...writableExport('disk', `driver=file,discard=unmap,filename=${join(dir, 'disk.raw')}`),
    ...writableExport('odd', `driver=file,filename=${join(dir, 'odd.raw')}`),
    ...writableExport('vast', `driver=null-co,read-zeroes=on,size=${VAST_SIZE}`),
    ...['--blockdev', `driver=file,node-name=ro,read-only=on,filename=${join(dir, 'ro.raw')}`],
    ...['--export', 'type=nbd,id=export-ro,node-name=ro,name=ro,description=a read-only disk'],
  ];
  const listen = ['--nbd-server', `addr.type=unix,addr.path=${socket}`];
  const daemon = await startDaemon(scope, [...listen, ...(further ?? usual)(dir)]);
  return { daemon, socket, dir, close: () => scope.close() };
}

/** The same for one test, ended with it. */
export async function startOwnServer(
  further?: (dir: string) => readonly string[],
): Promise<SpecServer> {
  const scope = testScope();
  const server = await startSpecServer(further);
  scope.defer(() => server.close());
  return server;
}

export interface OpenOptions {
  readonly structured?: boolean;
  readonly extended?: boolean;
  /** Metadata contexts to select; structured replies or extended headers have to be asked for. */
  readonly contexts?: readonly string[];
  readonly infos?: readonly number[];
}

/** A client of the running test in the option phase. */
export function haggle(server: SpecServer, clientFlags = 3): Promise<RawNbd> {
  return RawNbd.handshake(testScope(), server.socket, clientFlags);
}

/** A client of the running test in the transmission phase. */
export async function open(
  server: SpecServer,
  name: string,
  options: OpenOptions = {},
): Promise<{ client: RawNbd; info: ExportInfo; contexts: Map<number, string> }> {
  const client = await haggle(server);
  for (const [wanted, option] of [
    [options.structured, OPT.STRUCTURED_REPLY],
    [options.extended, OPT.EXTENDED_HEADERS],
  ] as const) {
    if (!wanted) continue;
    const type = await client.optionType(option);
    if (type !== REP.ACK) throw new Error(`option ${option} was answered with ${type}`);
  }
  const contexts =
    options.contexts === undefined
      ? new Map<number, string>()
      : await client.setMetaContexts(name, options.contexts);
  return { client, info: await client.go(name, options.infos), contexts };
}
