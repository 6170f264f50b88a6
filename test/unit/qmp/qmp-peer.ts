// SPDX-License-Identifier: MIT
/** Test stand-ins: a client on any two streams, and a small server with commands of its own. */
import { connect, type NetConnectOpts } from 'node:net';
import type { Duplex } from 'node:stream';
import { CHAR_COMMANDS } from '../../../protocol/qapi/char.js';
import { CONTROL_COMMANDS } from '../../../protocol/qapi/control.js';
import {
  defineCommand,
  defineEvent,
  int64,
  optional,
  required,
  str,
} from '../../../protocol/qapi/define.js';
import { INTROSPECT_COMMANDS } from '../../../protocol/qapi/introspect.js';
import type { JsonValue } from '../../../protocol/qapi/types.js';
import { QMP_REPLY_MAX, QMP_REPLY_TOKENS_MAX } from '../../../src/base/limits.js';
import { rootLog } from '../../../src/base/log.js';
import { registerCharCommands } from '../../../src/qmp/commands/char.js';
import { registerControlCommands } from '../../../src/qmp/commands/control.js';
import { EventHub } from '../../../src/qmp/events.js';
import { JsonStream } from '../../../src/qmp/json-stream.js';
import { Monitor } from '../../../src/qmp/monitor.js';
import { CommandRegistry } from '../../../src/qmp/registry.js';
import { type BackendOptions, ChardevSet } from '../../../src/qmp/transport/chardev-set.js';

/** A message as far as the tests look into it. */
export interface PeerMessage {
  readonly QMP?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly id?: unknown;
  readonly event?: string;
  readonly data?: unknown;
  readonly timestamp?: { readonly seconds: number; readonly microseconds: number };
}
const OVER: PeerMessage = { event: 'connection over' };

/** Collects what comes, message by message. */
export class QmpPeer {
  readonly #messages: JsonValue[] = [];
  #wake: (() => void) | undefined;
  #isOver = false;
  text = '';

  constructor(readonly stream: Duplex) {
    const parser = new JsonStream({ message: QMP_REPLY_MAX, tokens: QMP_REPLY_TOKENS_MAX });
    stream.on('data', (bytes: Buffer) => {
      this.text += bytes.toString();
      parser.feed(bytes);
      for (let m = parser.next(); m !== undefined; m = parser.next()) {
        if ('value' in m) this.#messages.push(m.value);
      }
      this.#wake?.();
    });
    stream.on('error', () => undefined);
    stream.on('close', () => {
      this.#isOver = true;
      this.#wake?.();
    });
  }

  static connect(options: NetConnectOpts): QmpPeer {
    return new QmpPeer(connect(options));
  }

  /** The next message; one that no server sends when the connection is over. */
  async next(): Promise<PeerMessage> {
    for (;;) {
      const message = this.#messages.shift();
      if (message !== undefined) return message as unknown as PeerMessage;
      if (this.#isOver) return OVER;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** True when nothing has come so far. */
  get isQuiet(): boolean {
    return this.#messages.length === 0;
  }

  send(text: string): void {
    this.stream.write(text);
  }

  /** Sends a command and takes the next message. */
  ask(name: string, args: unknown = {}, more: object = {}): Promise<PeerMessage> {
    this.send(JSON.stringify({ execute: name, arguments: args, ...more }));
    return this.next();
  }

  /** Takes the greeting and ends the negotiation. */
  async negotiate(enable: string[] = []): Promise<PeerMessage> {
    const greeting = await this.next();
    await this.ask('qmp_capabilities', { enable });
    return greeting;
  }

  close(): void {
    this.stream.destroy();
  }
}

const ECHO = defineCommand({
  name: 'echo',
  doc: 'Says it again.',
  arguments: { text: optional(str, 'what'), speed: optional(int64, 'how fast') },
  result: str,
  oob: true,
});
const HOLD = defineCommand({ name: 'hold', doc: 'Waits until it is let go.' });
const FAIL = defineCommand({ name: 'fail', doc: 'Throws.' });
export const NOTE = defineEvent({
  name: 'NOTE',
  doc: 'Something happened.',
  data: { text: required(str, 'what') },
});
export const RARE = defineEvent({
  name: 'RARE',
  doc: 'Something that happens too often.',
  data: { node: required(str, 'where'), n: required(int64, 'which') },
  rateLimitMs: 1000,
  rateKey: 'node',
});

export const VERSION = { qemu: { major: 7, minor: 2, micro: 0 }, package: 'test' };

/** A server with the control commands and a few of its own. */
export class TestServer {
  readonly events = new EventHub();
  readonly registry = new CommandRegistry([
    ...CONTROL_COMMANDS,
    ...INTROSPECT_COMMANDS,
    ...CHAR_COMMANDS,
    ECHO,
    HOLD,
    FAIL,
  ]);
  readonly chardevs: ChardevSet;
  readonly ran: string[] = [];
  /** Lets the commands go that hold. */
  readonly held: (() => void)[] = [];
  quits = 0;

  constructor(options: ConstructorParameters<typeof ChardevSet>[0] = {}) {
    this.chardevs = new ChardevSet(options);
    const { registry } = this;
    registerControlCommands(registry, {
      version: VERSION,
      events: [NOTE, RARE],
      quit: () => {
        this.quits++;
      },
    });
    registerCharCommands(registry, this.chardevs);
    registry.register(ECHO, ({ text, speed }) => {
      this.ran.push(text ?? String(speed));
      return text ?? String(speed);
    });
    registry.register(HOLD, () => new Promise<void>((resolve) => this.held.push(resolve)));
    registry.register(FAIL, () => {
      throw new TypeError('a bug');
    });
  }

  /** Puts a monitor on a new character device. */
  async listen(
    id: string,
    backend: BackendOptions,
    options: { readonly pretty?: boolean } = {},
  ): Promise<Monitor> {
    const chardev = await this.chardevs.add(id, backend);
    const { registry, events } = this;
    return new Monitor({
      chardev,
      registry,
      events,
      version: VERSION,
      logger: rootLog(),
      ...options,
    });
  }

  async close(): Promise<void> {
    this.events.close();
    await this.chardevs.close(100);
  }
}

/** A UNIX socket to listen on. */
export function unixServer(path: string, more: object = {}): BackendOptions {
  return { type: 'socket', data: { addr: { type: 'unix', data: { path } }, ...more } };
}
