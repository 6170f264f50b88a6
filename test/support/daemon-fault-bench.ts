// SPDX-License-Identifier: MIT
/** A daemon with a disk and a client that writes to it, and a target behind a wire that can be cut. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { NbdClient } from '../../src/nbd.js';
import { CutRelay } from './cut-relay.js';
import { type Daemon, startDaemon } from './daemon.js';
import { dirtyMarks } from './dirty-marks.js';
import { MIB, patternBytes } from './images.js';
import { runPeer } from './peers.js';
import { QmpClient } from './qmp-client.js';
import { TargetServer, type TargetServerOptions } from './target-server.js';
import type { Scope } from './temp.js';

export const DAEMON_FAULTS = [
  'target killed',
  'target killed and started',
  'target full',
  'wire cut',
  'wire cut off',
  'wire silent',
] as const;
export type DaemonFault = (typeof DAEMON_FAULTS)[number];

export type ImageFormat = 'raw' | 'qcow2';

export interface DaemonFaultOptions {
  /** Of the disk, bytes. */
  readonly size: number;
  readonly peer: TargetServerOptions['peer'];
  /** The target is a copy already; else it holds other bytes. */
  readonly equal: boolean;
  /** The first read of a part of the disk fails. */
  readonly sourceFails: boolean;
  readonly sourceFormat: ImageFormat;
  readonly targetFormat: ImageFormat;
}

/** What a server of a qcow2 image has room for, bytes: it can't grow. */
const TARGET_FILE_SIZE = 8 * MIB;
/** Sector whose first read fails. */
const BAD_SECTOR = 1000;

export class DaemonFaultBench {
  /** What the client has written. */
  readonly model: Buffer;
  /** Writes that failed; whether they took effect is not known. */
  readonly refused: { offset: number; length: number; error: unknown }[] = [];
  readonly #writing = new Set<{ offset: number; length: number; done: Promise<void> }>();
  #value = 0;

  private constructor(
    readonly daemon: Daemon,
    readonly qmp: QmpClient,
    /** For commands whose answer may take its time. */
    readonly patient: QmpClient,
    readonly client: NbdClient,
    readonly server: TargetServer,
    readonly relay: CutRelay,
    readonly paths: Readonly<Record<'source' | 'target' | 'nbd' | 'patient', string>>,
    readonly options: DaemonFaultOptions,
    model: Buffer,
  ) {
    this.model = model;
  }

  static async start(scope: Scope, options: DaemonFaultOptions): Promise<DaemonFaultBench> {
    const dir = await scope.tempDir();
    const [source, target, nbd, patient] = [
      'source.img',
      'target.img',
      'nbd.sock',
      'patient.sock',
    ].map((name) => join(dir, name)) as [string, string, string, string];
    const model = patternBytes(options.size, 4);
    model.fill(0, 0, 300_000);
    const { sourceFormat, targetFormat } = options;
    const old = options.equal ? model : Buffer.alloc(options.size, 0xa5);
    await makeDisk(source, model, sourceFormat);
    await makeDisk(target, old, targetFormat);
    if (targetFormat === 'qcow2') await truncate(target, TARGET_FILE_SIZE);
    const server = await TargetServer.start(scope, { peer: options.peer, image: target, dir });
    const relay = await CutRelay.start(scope, join(dir, 'relay.sock'), server.socketPath);
    const daemon = await startDaemon(scope, [
      ...daemonArguments(source, nbd, options),
      ...['--chardev', `socket,id=patient,path=${patient},server=on,wait=off`],
      ...['--monitor', 'chardev=patient'],
    ]);
    const qmp = await daemon.qmp(scope);
    const second = await QmpClient.connect(patient);
    scope.defer(() => second.close());
    const client = await NbdClient.connect({
      address: { type: 'unix', path: nbd },
      exportName: 'disk',
      connections: 1,
    });
    scope.defer(() => client.close());
    const paths = { source, target, nbd, patient };
    return new DaemonFaultBench(daemon, qmp, second, client, server, relay, paths, options, model);
  }

  /** Adds the node `target`. @param reconnectDelay seconds */
  async addTarget(reconnectDelay: number): Promise<void> {
    const wire = {
      ...{ driver: 'nbd', export: 'disk', discard: 'unmap', 'reconnect-delay': reconnectDelay },
      server: { type: 'unix', path: this.relay.path },
    };
    const image = { driver: 'qcow2', file: wire, discard: 'unmap' };
    const node = this.options.targetFormat === 'raw' ? wire : image;
    await this.qmp.execute('blockdev-add', { ...node, 'node-name': 'target' });
  }

  /**
   * Writes without waiting; leaves out what would overlap a write that is under way. What is discarded
   * reads as zeroes in a file, but not where it is part of a cluster of an image: that is zeroed.
   */
  write(wanted: 'write' | 'zero' | 'discard', offset: number, length: number): void {
    const inImage = this.options.sourceFormat !== 'raw';
    const act = wanted === 'discard' && inImage ? 'zero' : wanted;
    for (const other of this.#writing) {
      if (offset < other.offset + other.length && other.offset < offset + length) return;
    }
    this.#value = (this.#value % 255) + 1;
    const value = act === 'write' ? this.#value : 0;
    const { client } = this;
    const submitted =
      act === 'write'
        ? client.write(offset, Buffer.alloc(length, value))
        : act === 'zero'
          ? client.writeZeroes(offset, length)
          : client.trim(offset, length);
    const done = submitted.then(
      () => {
        this.model.fill(value, offset, offset + length);
      },
      (error: unknown) => {
        this.refused.push({ offset, length, error });
      },
    );
    const entry = { offset, length, done };
    this.#writing.add(entry);
    void done.then(() => this.#writing.delete(entry));
  }

  /** Waits for the writes that are under way. */
  async settled(): Promise<void> {
    await Promise.all([...this.#writing].map(({ done }) => done));
  }

  async break(fault: DaemonFault): Promise<void> {
    const { server, relay } = this;
    if (fault === 'target full' && server.canBeFull) await server.fill();
    else if (fault === 'wire cut off') relay.cutOff();
    else if (fault === 'wire silent') relay.goSilent();
    else if (fault === 'wire cut') relay.cut();
    else {
      await server.kill();
      if (fault !== 'target killed') await server.restart();
    }
  }

  async heal(): Promise<void> {
    await this.server.empty();
    await this.server.restart();
    this.relay.mend();
  }

  /** What an image holds for its users. */
  async content(which: 'source' | 'target'): Promise<Buffer> {
    const path = this.paths[which];
    const format = this.options[`${which}Format`];
    if (format === 'raw') return readFile(path);
    const flat = `${path}.flat`;
    await runPeer('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', path, flat]);
    return readFile(flat);
  }

  /** Where the disk is not what the client wrote; where that is not known, anything is right. */
  async firstDifference(right: Buffer): Promise<number> {
    const content = await this.content('source');
    for (const { offset, length } of this.refused)
      right.copy(content, offset, offset, offset + length);
    return content.equals(right) ? -1 : content.findIndex((byte, at) => byte !== right[at]);
  }

  /** Ranges that the bitmap marks, as an NBD client sees them; the client must be silent. */
  marked(size: number): Promise<(offset: number) => boolean> {
    const { qmp, paths } = this;
    return dirtyMarks({ qmp, socket: paths.nbd, node: 'disk', bitmap: 'b', size });
  }
}

async function makeDisk(path: string, content: Buffer, format: ImageFormat): Promise<void> {
  if (format === 'raw') return writeFile(path, content);
  await writeFile(`${path}.raw`, content);
  const how = ['-q', '-f', 'raw', '-O', format, `${path}.raw`, path];
  await runPeer('qemu-img', ['convert', ...how]);
}

function daemonArguments(
  image: string,
  socket: string,
  { sourceFails, sourceFormat }: DaemonFaultOptions,
): string[] {
  const bad = { event: 'none', iotype: 'read', sector: BAD_SECTOR, once: true, errno: 5 };
  const bug = { driver: 'blkdebug', 'node-name': 'bug', image: 'file', 'inject-error': [bad] };
  const disk = { driver: sourceFormat, 'node-name': 'disk', discard: 'unmap' };
  return [
    ...['--blockdev', `driver=file,node-name=file,filename=${image},discard=unmap`],
    ...(sourceFails ? ['--blockdev', JSON.stringify({ ...bug, discard: 'unmap' })] : []),
    ...['--blockdev', JSON.stringify({ ...disk, file: sourceFails ? 'bug' : 'file' })],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'type=nbd,id=disk,node-name=disk,name=disk,writable=on'],
  ];
}
