// SPDX-License-Identifier: MIT
/** The servers that are compared, each started in the same way: the same images, one export for each. */
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { run, start, stop } from './processes.js';

export type Transport = 'unix' | 'tcp';
export const TRANSPORTS: readonly Transport[] = ['unix', 'tcp'];

const HOST = '127.0.0.1';
const GREETING_BYTES = 18;
const START_TIMEOUT_MS = 60_000;
const RETRY_MS = 1;

/** Where a server is to listen. */
type Endpoint = { readonly path: string } | { readonly host: string; readonly port: number };
interface Image {
  /** Name of the export. */
  readonly name: string;
  readonly path: string;
  readonly format: ImageFormat;
}
/** A `qcow2` image brings its backing files along. */
export type ImageFormat = 'raw' | 'qcow2';
export interface Command {
  readonly program: string;
  readonly args: string[];
}

export interface ServerKind {
  readonly name: string;
  command(images: readonly Image[], endpoint: Endpoint): Command;
  /** How to ask for its version. */
  readonly version: Command;
  /** One process serves several exports. */
  readonly severalExports: boolean;
}

/** A server that takes the options of a storage daemon. */
export interface StorageDaemonKind extends ServerKind {
  /** Starts it with these options and no others. */
  invoke(args: readonly string[]): Command;
}

export interface RunningServer {
  readonly pid: number;
  /** Milliseconds from starting the process to its NBD greeting. */
  readonly greetingMs: number;
  uri(exportName: string): string;
  stop(): Promise<void>;
}

/** Export of the one image in all cells but the cold-cache one. */
export const EXPORT_NAME = 'disk';

/** Options that diskferryd and qemu-storage-daemon share, word for word. */
function storageDaemonArgs(images: readonly Image[], endpoint: Endpoint): string[] {
  const address =
    'path' in endpoint
      ? `addr.type=unix,addr.path=${endpoint.path}`
      : `addr.type=inet,addr.host=${endpoint.host},addr.port=${endpoint.port}`;
  const nodes = images.flatMap(({ name, path, format }) => {
    const file = `driver=file,filename=${path},discard=unmap`;
    if (format === 'raw') return ['--blockdev', `${file},node-name=${name}`];
    const above = `driver=qcow2,node-name=${name},file=${name}-file,discard=unmap`;
    return ['--blockdev', `${file},node-name=${name}-file`, '--blockdev', above];
  });
  const exports = images.flatMap(({ name }) => [
    '--export',
    `type=nbd,id=export-${name},node-name=${name},name=${name},writable=on`,
  ]);
  return [...nodes, '--nbd-server', address, ...exports];
}

const LAUNCHER = fileURLToPath(new URL('../../src/daemon/launch.cjs', import.meta.url));

function storageDaemon(
  name: string,
  invoke: (args: readonly string[]) => Command,
): StorageDaemonKind {
  return {
    name,
    invoke,
    command: (images, endpoint) => invoke(storageDaemonArgs(images, endpoint)),
    version: invoke(['--version']),
    severalExports: true,
  };
}

/** Both daemons that know nodes, jobs and monitors. */
export const STORAGE_DAEMONS: readonly StorageDaemonKind[] = [
  storageDaemon('diskferryd', (args) => ({
    program: process.execPath,
    args: [LAUNCHER, ...args],
  })),
  storageDaemon('qemu-storage-daemon', (args) => ({
    program: 'qemu-storage-daemon',
    args: [...args],
  })),
];

export const SERVERS: readonly ServerKind[] = [
  ...STORAGE_DAEMONS,
  {
    name: 'qemu-nbd',
    command([image], endpoint) {
      const listen =
        'path' in endpoint
          ? ['-k', endpoint.path]
          : ['-b', endpoint.host, '-p', `${endpoint.port}`];
      const format = image?.format ?? 'raw';
      const options = ['-f', format, '-t', '-e', '32', '--discard=unmap', '-x', EXPORT_NAME];
      return { program: 'qemu-nbd', args: [...options, ...listen, image?.path ?? ''] };
    },
    version: { program: 'qemu-nbd', args: ['--version'] },
    severalExports: false,
  },
  {
    name: 'nbdkit',
    command(images, endpoint) {
      const listen =
        'path' in endpoint
          ? ['-U', endpoint.path]
          : ['-i', endpoint.host, '-p', `${endpoint.port}`];
      const path = images[0]?.path ?? '';
      // Several files are exports only as the files of one folder, under their own names.
      const content = images.length === 1 ? `file=${path}` : `dir=${dirname(path)}`;
      return { program: 'nbdkit', args: ['-f', ...listen, 'file', content] };
    },
    version: { program: 'nbdkit', args: ['--version'] },
    severalExports: true,
  },
];

/** First line that a server prints about its version. */
export async function versionOf({ version }: ServerKind): Promise<string> {
  return (await run(version.program, version.args)).split('\n')[0]?.trim() ?? '';
}

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, HOST, resolve));
  const address = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no free TCP port');
  return address.port;
}

/** Resolves when an NBD greeting came, to true, or the connection ended without one, to false. */
function greets(endpoint: Endpoint): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(endpoint);
    let received = 0;
    const end = (greeted: boolean): void => {
      socket.destroy();
      resolve(greeted);
    };
    socket.on('error', () => end(false));
    socket.on('close', () => resolve(false));
    socket.on('data', (chunk) => {
      received += chunk.length;
      if (received >= GREETING_BYTES) end(true);
    });
  });
}

/**
 * Starts a server on images and waits until it greets a client.
 * @param dir folder for the socket
 */
export async function startServer(
  kind: ServerKind,
  options: {
    readonly images: readonly string[];
    readonly transport: Transport;
    readonly dir: string;
    /** Of all images; raw by default. */
    readonly format?: ImageFormat;
  },
): Promise<RunningServer> {
  if (!existsSync(LAUNCHER)) throw new Error(`${LAUNCHER} is missing: run "npm run build"`);
  const images = options.images.map((path) => ({
    name: options.images.length === 1 ? EXPORT_NAME : basename(path),
    path,
    format: options.format ?? 'raw',
  }));
  const path = join(options.dir, 'nbd.sock');
  await rm(path, { force: true }); // what a server that was killed left behind
  const endpoint = options.transport === 'unix' ? { path } : { host: HOST, port: await freePort() };
  const command = kind.command(images, endpoint);
  const begin = performance.now();
  const child = start(command.program, command.args);
  await untilGreets(child, endpoint, command);
  const greetingMs = performance.now() - begin;
  return {
    pid: child.pid ?? 0,
    greetingMs,
    uri: (name) =>
      'path' in endpoint
        ? `nbd+unix:///${name}?socket=${endpoint.path}`
        : `nbd://${endpoint.host}:${endpoint.port}/${name}`,
    stop: () => stop(child),
  };
}

/** @throws Error with what the server said, when it ends or takes too long; it is stopped then */
async function untilGreets(
  child: ChildProcess,
  endpoint: Endpoint,
  { program, args }: Command,
): Promise<void> {
  let said = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-2_000);
    });
  }
  child.once('error', (error) => {
    said += error.message;
  });
  const deadline = performance.now() + START_TIMEOUT_MS;
  while (!(await greets(endpoint))) {
    if (performance.now() > deadline || child.pid === undefined || child.exitCode !== null) {
      await stop(child);
      throw new Error(`a server did not start: ${program} ${args.join(' ')}\n${said}`);
    }
    await sleep(RETRY_MS);
  }
}
