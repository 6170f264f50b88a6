// SPDX-License-Identifier: MIT
import type { ChildProcess } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FlowImages } from './flow-images.js';
import { type Peer, type Player, startPlayer, subjectOf } from './flow-peer.js';
import {
  type FlowLine,
  type FlowStep,
  holds,
  type Json,
  type JsonObject,
  type Side,
} from './flow-text.js';
import { MIB, makeImage, readRange } from './images.js';
import { untilListens } from './listening.js';
import { runPeer, spawnTracked } from './peers.js';
import type { Scope } from './temp.js';

/** Plays one dialogue between two programs, or with one, each started for it. */
export class FlowReplay {
  readonly #peers = new Map<Side, Peer>();
  readonly #servers = new Map<string, ChildProcess>();
  readonly #images: FlowImages;
  #reply: { readonly of: string; readonly message: JsonObject } | undefined;

  private constructor(
    readonly scope: Scope,
    readonly dir: string,
  ) {
    this.#images = new FlowImages(dir);
  }

  static async start(scope: Scope, players: Readonly<Partial<Record<Side, Player>>>) {
    const replay = new FlowReplay(scope, await scope.tempDir());
    for (const side of ['src', 'dst'] as const) {
      const player = players[side];
      if (player) replay.#peers.set(side, await startPlayer(scope, player, replay.dir));
    }
    return replay;
  }

  /** @throws Error that names the line and what came instead */
  async play(lines: readonly FlowLine[]): Promise<void> {
    for (const [at, { text, step }] of lines.entries()) {
      try {
        await this.#step(step);
        const next = lines[at + 1]?.step.kind;
        if (next !== 'returns' && next !== 'fails') this.#checkPlainReply();
      } catch (cause) {
        const reason = cause instanceof Error ? cause.message : String(cause);
        throw new Error(`at "${text}": ${reason}`, { cause });
      }
    }
    for (const [side, peer] of this.#peers) await this.#checkNothingLeft(side, peer);
  }

  #peer(side: string | undefined): Peer {
    const peer = this.#peers.get(side as Side);
    if (peer === undefined) throw new Error(`nobody plays ${side}`);
    return peer;
  }

  async #step(step: FlowStep): Promise<void> {
    switch (step.kind) {
      case 'command': {
        const args = await this.#filled(step.args);
        const message = await this.#peer(step.side).ask(step.name, args);
        this.#reply = { of: step.name, message };
        return;
      }
      case 'returns':
        return this.#checkReturn(step);
      case 'fails': {
        const { class: errorClass, desc } = step;
        const wanted = { class: errorClass, desc: await this.#filled(desc) };
        const error = this.#takeReply().error;
        if (!holds(error, wanted)) throw new Error(`the error was ${JSON.stringify(error)}`);
        return;
      }
      case 'states':
        return this.#states(step);
      case 'event': {
        const peer = this.#peer(step.side);
        const seen = await peer.next(subjectOf(step.name, step.data), { take: true });
        if (seen.name !== step.name || !holds(seen.data, step.data)) {
          throw new Error(`the event was ${seen.name} ${JSON.stringify(seen.data)}`);
        }
        if (step.beforeReply) peer.checkBeforeReply(seen);
        return;
      }
      case 'verb':
        return this.#verb(step.verb, step.words);
    }
  }

  /** $DIR: the folder of the images; $PORT: where the destination's server listens. */
  async #filled(text: string): Promise<string> {
    const filled = text.replaceAll('$DIR', this.dir);
    if (!filled.includes('$PORT')) return filled;
    const [port] = await this.#peer('dst').daemon.tcpPorts();
    return filled.replaceAll('$PORT', String(port));
  }

  #takeReply(): JsonObject {
    const message = this.#reply?.message;
    this.#reply = undefined;
    if (message === undefined) throw new Error('no command before');
    return message;
  }

  /** A reply of which the text says nothing. */
  #checkPlainReply(): void {
    if (this.#reply === undefined) return;
    const { of: name } = this.#reply;
    const message = this.#takeReply();
    const empty = JSON.stringify(message.return) === '{}';
    if (message.return === undefined || !(empty || name.startsWith('query-'))) {
      throw new Error(`${name} answered ${JSON.stringify(message)}`);
    }
  }

  #checkReturn({ value, has }: { readonly value: Json; readonly has: boolean }): void {
    const message = this.#takeReply();
    const items = message.return as readonly Json[];
    const found = has
      ? (value as readonly Json[]).every((wanted) => items.some((item) => holds(item, wanted)))
      : holds(message.return, value);
    if (!found) throw new Error(`the answer was ${JSON.stringify(message)}`);
  }

  async #states(step: Extract<FlowStep, { kind: 'states' }>): Promise<void> {
    const peer = this.#peer(step.side);
    const subject = `job ${step.job}`;
    for (const { states, optional } of step.states) {
      for (const [at, state] of states.entries()) {
        const seen = await peer.next(subject, { take: false });
        const came = seen.name === 'JOB_STATUS_CHANGE' && seen.data.status === state;
        if (!came && optional && at === 0) break;
        if (!came) {
          throw new Error(`instead of ${state} came ${seen.name} ${JSON.stringify(seen.data)}`);
        }
        await peer.next(subject, { take: true });
        if (step.beforeReply) peer.checkBeforeReply(seen);
      }
    }
  }

  async #verb(verb: string, words: readonly string[]): Promise<void> {
    const [first = '', second = '', third = ''] = words;
    const path = (name: string): string => join(this.dir, name);
    switch (verb) {
      case 'only': // who plays: read by the test before the start
        return;
      case 'disk': // SIDE PREFIX FILE: a disk with data as a file node and a raw node
      case 'stale': // the same, full of other bytes, which show what a job left out
        return this.#addDisk({ side: first, prefix: second, file: third, stale: verb === 'stale' });
      case 'image': // FILE: only the file, full of other bytes
        return writeFile(path(first), STALE);
      case 'guest': // SIDE NODE: an export over which `io` writes
        return this.#addGuest(first, second);
      case 'io': // SIDE COMMANDS: of qemu-io, what the guest does
        return this.#guestIo(first, words.slice(1));
      case 'peek': // SOCKET EXPORT COMMANDS: the same by any export
        return this.#io(`nbd+unix:///${second}?socket=${path(first)}`, words.slice(2));
      case 'keep': // FILE COPY: keep what the disk is now
        return writeFile(path(second), await readFile(path(first)));
      case 'same': // FILE FILE [OFFSET LENGTH]: they hold the same bytes
        return this.#same(path(first), path(second), words.slice(2).map(Number));
      case 'free': // FILES: nobody has them locked
        for (const name of words)
          await runPeer('qemu-io', ['-f', 'raw', '-c', 'flush', path(name)]);
        return;
      case 'serve': // FILE SOCKET: by qemu-nbd, under the file's name
        return this.#serve(first, path(second));
      case 'kill': // SOCKET: the server that listens there
        return this.#kill(path(first));
      case 'left': // SIDE NODES: may be there at the end
        for (const name of words.slice(1)) this.#peer(first).nodes.add(name);
        return;
      case 'end': // SIDE: asks the daemon to end, which has no job then
        return this.#end(first);
      default:
        return this.#imageVerb(verb, words);
    }
  }

  async #imageVerb(verb: string, words: readonly string[]): Promise<void> {
    const [first = '', second = ''] = words;
    switch (verb) {
      case 'chain': // SIDE LAST: a.qcow2 up to LAST, with a guest on top
        return this.#addChain(first, second);
      case 'qcow2': // SIDE NODE: NODE.qcow2, empty
        return this.#addQcow2(first, second);
      case 'broken': // SIDE NODE EVENT=ERRNO: an empty raw disk, at which blkdebug has this event fail
        return this.#addBroken(first, second, words[2] ?? '');
      case 'img': // WORDS: what qemu-img is told
        return void (await this.#images.tool('qemu-img', words));
      case 'fails': // SIDE COMMAND: of qemu-io, what the guest does in vain
        return this.#guestFails(first, second);
      case 'corrupt': // FILE: is marked so
        return this.#images.corrupt(first);
      case 'poke': // FILE OFFSET HEX: other bytes in a file, as damage has them
        return this.#images.poke(first, Number(second), Buffer.from(words[2] ?? '', 'hex'));
      case 'paint': // FILE BYTE OFFSET LENGTH: what a raw image has to hold then
        return this.#images.paint(first, words.slice(1));
      case 'compare': // FILE FILE: qemu-img finds them identical
        return this.#images.compare(first, second);
      case 'backing': // FILES: the chain that qemu-img sees, from the top
        return this.#images.backing(words);
      default:
        throw new Error('no such verb');
    }
  }

  async #addChain(side: string, last: string): Promise<void> {
    const peer = this.#peer(side);
    const open = async (): Promise<void> => {
      const file = { driver: 'file', 'node-name': 'file', filename: 'a.qcow2' };
      await peer.result('blockdev-add', { driver: 'qcow2', 'node-name': 'node-A', file });
      await this.#addGuest(side, 'node-A');
    };
    const snapshot = async (from: string, to: string): Promise<void> => {
      await peer.result('blockdev-snapshot-sync', {
        ...{ 'node-name': `node-${from}`, 'snapshot-node-name': `node-${to}`, format: 'qcow2' },
        'snapshot-file': `${to.toLowerCase()}.qcow2`,
      });
    };
    const io = (command: string): Promise<void> => this.#guestIo(side, [command]);
    await this.#images.chain({ open, snapshot, io }, last);
  }

  async #addQcow2(side: string, node: string): Promise<void> {
    const peer = this.#peer(side);
    const [filename, file] = [`${node}.qcow2`, `${node}-file`];
    await this.#images.tool('qemu-img', ['create', '-q', '-f', 'qcow2', filename, `${DISK_BYTES}`]);
    await peer.result('blockdev-add', { driver: 'file', 'node-name': file, filename });
    await peer.result('blockdev-add', { driver: 'qcow2', 'node-name': node, file });
    peer.nodes.add(node).add(file);
  }

  async #addBroken(side: string, node: string, rule: string): Promise<void> {
    const peer = this.#peer(side);
    const filename = `${node}.raw`;
    await this.#images.tool('qemu-img', ['create', '-q', '-f', 'raw', filename, `${DISK_BYTES}`]);
    const [event, errno] = rule.split('=');
    const file = {
      ...{ driver: 'blkdebug', image: { driver: 'file', filename } },
      'inject-error': [{ event, errno: Number(errno) }],
    };
    await peer.result('blockdev-add', { driver: 'raw', 'node-name': node, file });
  }

  async #end(side: string): Promise<void> {
    const peer = this.#peer(side);
    await peer.checkIdle();
    await peer.result('quit');
    const { code } = await peer.daemon.exited;
    if (code !== 0) throw new Error(`the daemon ended with ${code}: ${peer.daemon.log}`);
    this.#peers.delete(side as Side);
  }

  async #addDisk(disk: { side: string; prefix: string; file: string; stale: boolean }) {
    const filename = join(this.dir, disk.file);
    if (disk.stale) await writeFile(filename, STALE);
    else await makeImage(filename, { size: DISK_BYTES, data: DISK_DATA });
    const peer = this.#peer(disk.side);
    const [file, node] = [`${disk.prefix}-storage`, `${disk.prefix}-format`];
    const common = { discard: 'unmap', 'read-only': false };
    await peer.result('blockdev-add', { driver: 'file', 'node-name': file, filename, ...common });
    await peer.result('blockdev-add', { driver: 'raw', 'node-name': node, file, ...common });
    peer.nodes.add(file).add(node);
  }

  async #addGuest(side: string, node: string): Promise<void> {
    const peer = this.#peer(side);
    const data = { path: this.#guestSocket(side) };
    await peer.ask('nbd-server-start', JSON.stringify({ addr: { type: 'unix', data } }));
    const id = `guest-${node}`;
    await peer.result('block-export-add', {
      ...{ type: 'nbd', id, name: 'guest', 'node-name': node, writable: true },
    });
    peer.exports.add(id);
  }

  #guestSocket(side: string): string {
    return join(this.dir, `${side}-guest.sock`);
  }

  async #guestIo(side: string, commands: readonly string[]): Promise<void> {
    const uri = `nbd+unix:///guest?socket=${this.#guestSocket(side)}`;
    await this.#io(uri, [...commands, 'flush']);
  }

  async #guestFails(side: string, command: string): Promise<void> {
    const done = await this.#guestIo(side, [command]).then(
      () => true,
      () => false,
    );
    if (done) throw new Error('it was done');
  }

  async #io(uri: string, commands: readonly string[]): Promise<void> {
    const steps = commands.flatMap((command) => ['-c', command]);
    const access = commands.every((command) => command.startsWith('read')) ? ['-r'] : [];
    const { stdout } = await runPeer('qemu-io', [
      ...access,
      '-d',
      'unmap',
      '-f',
      'raw',
      ...steps,
      uri,
    ]);
    if (/failed/.test(stdout)) throw new Error(stdout);
  }

  async #serve(name: string, socket: string): Promise<void> {
    const args = ['-f', 'raw', '-t', '-k', socket, '-x', name, join(this.dir, name)];
    const child = spawnTracked('qemu-nbd', args, { stdio: 'ignore' });
    this.#servers.set(socket, child);
    this.scope.defer(() => child.kill('SIGKILL'));
    await untilListens(child, socket);
  }

  async #kill(socket: string): Promise<void> {
    const child = this.#servers.get(socket);
    if (child === undefined) throw new Error(`nobody serves ${socket}`);
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await ended;
    await rm(socket);
  }

  async #same(left: string, right: string, range: readonly number[]): Promise<void> {
    const [offset = 0, length = DISK_BYTES] = range;
    const [a, b] = await Promise.all([
      readRange(left, offset, length),
      readRange(right, offset, length),
    ]);
    if (a.equals(b)) return;
    throw new Error(
      `first difference after ${offset}, at ${a.findIndex((byte, i) => byte !== b[i])}`,
    );
  }

  async #checkNothingLeft(side: Side, peer: Peer): Promise<void> {
    await peer.checkIdle();
    const names = async (command: string, key: string): Promise<string[]> =>
      ((await peer.result(command)) as JsonObject[]).map((item) => String(item[key]));
    const left = [
      ...(await names('query-block-exports', 'id')).filter((id) => !peer.exports.has(id)),
      ...(await names('query-named-block-nodes', 'node-name')).filter((n) => !peer.nodes.has(n)),
    ];
    if (left.length > 0) throw new Error(`${side} still has ${left.join(', ')}`);
  }
}

const DISK_BYTES = 8 * MIB;
const DISK_DATA = [
  { offset: 0, length: 3 * MIB },
  { offset: 6 * MIB, length: 2 * MIB },
];
const STALE = Buffer.alloc(DISK_BYTES, 0xa5);
