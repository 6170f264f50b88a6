// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { type Daemon, startDaemon } from './daemon.js';
import { type DataRange, makeImage } from './images.js';
import type { Scope } from './temp.js';

export interface ServedImageOptions {
  /** Bytes. */
  readonly size: number;
  readonly data?: readonly DataRange[];
  readonly seed?: number;
  /** Refuse writes; the default is a writable export. */
  readonly readOnly?: boolean;
  /** Listen on a free TCP port of 127.0.0.1 instead of a UNIX socket. */
  readonly tcp?: boolean;
  /** Further options of the file node, such as `,cache.direct=on`. */
  readonly fileOptions?: string;
  /** Further options of the raw node, such as `,detect-zeroes=unmap`. */
  readonly rawOptions?: string;
  /** Further options of the export, such as `,description=text`. */
  readonly exportOptions?: string;
  /** Further options of the daemon. */
  readonly args?: readonly string[];
}

/** A raw image file, a daemon of its own, and one export named `disk`. */
export interface ServedImage {
  readonly daemon: Daemon;
  /** The image file. */
  readonly path: string;
  /** A folder for what the test makes besides. */
  readonly dir: string;
  /** Address of the export, as every peer takes it. */
  readonly uri: string;
  /** Set on a UNIX socket. */
  readonly socketPath: string;
  /** Set on TCP, otherwise 0. */
  readonly port: number;
}

export async function serveImage(scope: Scope, options: ServedImageOptions): Promise<ServedImage> {
  const dir = await scope.tempDir();
  const path = join(dir, 'disk.img');
  await makeImage(path, options);
  const socketPath = join(dir, 'nbd.sock');
  const readOnly = options.readOnly ?? false;
  const access = readOnly ? 'read-only=on' : 'discard=unmap';
  const address = options.tcp
    ? 'addr.type=inet,addr.host=127.0.0.1,addr.port=0'
    : `addr.type=unix,addr.path=${socketPath}`;
  const daemon = await startDaemon(scope, [
    '--blockdev',
    `driver=file,node-name=file,filename=${path},${access}${options.fileOptions ?? ''}`,
    '--blockdev',
    `driver=raw,node-name=disk,file=file,${access}${options.rawOptions ?? ''}`,
    '--nbd-server',
    `${address}`,
    '--export',
    `type=nbd,id=disk,node-name=disk,name=disk,writable=${readOnly ? 'off' : 'on'}` +
      (options.exportOptions ?? ''),
    ...(options.args ?? []),
  ]);
  const [port = 0] = options.tcp ? await daemon.tcpPorts() : [];
  const uri = options.tcp
    ? `nbd://127.0.0.1:${port}/disk`
    : `nbd+unix:///disk?socket=${socketPath}`;
  return { daemon, path, dir, uri, socketPath, port };
}
