// SPDX-License-Identifier: MIT
/** A link with delay, in a process of its own so that it takes no time from those that it connects. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { RelayMessage } from './relay-process.js';

const PROGRAM = fileURLToPath(new URL('./relay-process.js', import.meta.url));

export interface RelayOptions {
  /** TCP port of the server on this machine. */
  readonly serverPort: number;
  /** Each way, milliseconds. */
  readonly delayMs: number;
  /** Bytes a second in each direction; unlimited when absent. */
  readonly bytesPerSecond?: number | undefined;
  /** The relay's compiled program, when it is not beside this file. */
  readonly program?: string;
}

export interface Relay {
  /** TCP port for clients. */
  readonly port: number;
  /** Bytes that have entered so far, in each direction, as the TCP connections carried them. */
  bytes(): Promise<{ readonly toServer: number; readonly toClient: number }>;
  stop(): Promise<void>;
}

/** @throws Error when the relay ends instead of listening */
export async function startRelay(options: RelayOptions): Promise<Relay> {
  const { serverPort, delayMs, bytesPerSecond = 0, program = PROGRAM } = options;
  const child = fork(program, [serverPort, delayMs, bytesPerSecond].map(String), { execArgv: [] });
  const ended = new Promise<void>((resolve) => {
    child.once('error', () => resolve());
    child.once('exit', () => resolve());
  });
  const answer = async (): Promise<RelayMessage> => {
    const gone = ended.then(() => {
      throw new Error('the relay ended');
    });
    const [message] = await Promise.race([once(child, 'message'), gone]);
    return message as RelayMessage;
  };
  const { port } = await answer();
  if (port === undefined) throw new Error('the relay told no port');
  return {
    port,
    async bytes() {
      child.send('bytes');
      const { bytes } = await answer();
      if (bytes === undefined) throw new Error('the relay told no count');
      return bytes;
    },
    async stop() {
      if (child.connected) child.disconnect(); // which ends it
      await ended;
    },
  };
}
