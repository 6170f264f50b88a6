// SPDX-License-Identifier: MIT
/** The programs in a dialogue: how they are started, and what their monitors say. */
import { join } from 'node:path';
import { Daemon, startDaemon, waitUntil } from './daemon.js';
import { type Json, type JsonObject, parseExact } from './flow-text.js';
import { untilMonitor } from './listening.js';
import { spawnTracked } from './peers.js';
import type { QmpClient } from './qmp-client.js';
import type { Scope } from './temp.js';

/** Who plays a side. */
export type Player = 'diskferryd' | 'qemu-storage-daemon' | 'qemu-system';

export interface SeenEvent {
  readonly name: string;
  readonly data: JsonObject;
  /** Place among all lines of its monitor. */
  readonly at: number;
}

/** Which thing an event is about: order counts within one, not between them. */
export function subjectOf(name: string, data: JsonObject): string {
  if (/^(BLOCK_)?JOB_/.test(name)) return `job ${String(data.device ?? data.id)}`;
  return `${name} ${String(data.id ?? '')}`;
}

/** One program in the dialogue: its monitor, read line by line. */
export class Peer {
  /** Nodes and exports that the setting made, and that may be there at the end. */
  readonly nodes = new Set<string>();
  readonly exports = new Set<string>();
  readonly #seen = new Map<string, SeenEvent[]>();
  #read = 0;
  #replyAt = 0;

  constructor(
    readonly daemon: Daemon,
    readonly qmp: QmpClient,
  ) {}

  /** Sends a command as the text has it. @returns its reply */
  async ask(name: string, args: string): Promise<JsonObject> {
    const given = args === '' ? '' : `, "arguments": ${args}`;
    this.qmp.send(`{"execute": "${name}"${given}}\n`);
    await this.qmp.nextReply(name);
    const isReply = (line: string): boolean => /^\{"(return|error)"/.test(line);
    this.#replyAt = this.qmp.lines.findLastIndex(isReply);
    return parseExact(this.qmp.lines[this.#replyAt] ?? '') as JsonObject;
  }

  /** Asks what must work. */
  async result(name: string, args: object = {}): Promise<Json> {
    const reply = await this.ask(name, JSON.stringify(args));
    if (reply.error !== undefined) throw new Error(`${name}: ${JSON.stringify(reply.error)}`);
    return reply.return ?? null;
  }

  /** The next event of a thing, come or to come. @param take false: leave it for the next step */
  async next(subject: string, options: { readonly take: boolean }): Promise<SeenEvent> {
    await waitUntil(() => this.#pending(subject).length > 0, {
      what: () => `an event of ${subject}; the last lines were\n${this.#lastLines()}`,
    });
    const queue = this.#pending(subject);
    const [event] = options.take ? queue.splice(0, 1) : queue;
    if (event === undefined) throw new Error(`the event of ${subject} is gone`);
    return event;
  }

  /** @throws Error when the event came after the reply to the last command */
  checkBeforeReply({ name, data, at }: SeenEvent): void {
    if (at < this.#replyAt) return;
    throw new Error(`${name} ${JSON.stringify(data)} came after the reply`);
  }

  /** Events that no step expected. */
  unexpected(): SeenEvent[] {
    this.#pending('');
    return [...this.#seen.values()].flat();
  }

  /** @throws Error when there are jobs, or events that no step expected */
  async checkIdle(): Promise<void> {
    const jobs = (await this.result('query-jobs')) as readonly Json[];
    if (jobs.length > 0) throw new Error(`jobs are left: ${JSON.stringify(jobs)}`);
    const events = this.unexpected();
    if (events.length > 0) throw new Error(`nobody expected ${JSON.stringify(events)}`);
  }

  #lastLines(): string {
    return this.qmp.lines.slice(-8).join('\n');
  }

  #pending(subject: string): SeenEvent[] {
    for (; this.#read < this.qmp.lines.length; this.#read++) {
      const message = parseExact(this.qmp.lines[this.#read] ?? '{}') as JsonObject;
      if (message.event === undefined) continue;
      const name = String(message.event);
      const data = (message.data ?? {}) as JsonObject;
      const about = subjectOf(name, data);
      const queue = this.#seen.get(about) ?? [];
      this.#seen.set(about, queue);
      queue.push({ name, data, at: this.#read });
    }
    return this.#seen.get(subject) ?? [];
  }
}

/** Starts a program in a folder, with a monitor that has negotiated. */
export async function startPlayer(scope: Scope, player: Player, cwd: string): Promise<Peer> {
  if (player === 'qemu-system') {
    const dir = await scope.tempDir();
    const path = join(dir, 'qmp.sock');
    const child = spawnTracked(
      'qemu-system-x86_64',
      [
        ...['-machine', 'none', '-accel', 'tcg', '-S', '-nodefaults', '-display', 'none'],
        ...['-qmp', `unix:${path},server=on,wait=off`],
      ],
      { cwd },
    );
    const daemon = new Daemon(child, dir, path);
    scope.defer(() => daemon.stop());
    const qmp = await untilMonitor(child, path);
    scope.defer(() => qmp.close());
    return new Peer(daemon, qmp);
  }
  const command = player === 'diskferryd' ? {} : { command: [player] };
  const daemon = await startDaemon(scope, [], { cwd, ...command });
  return new Peer(daemon, await daemon.qmp(scope));
}
