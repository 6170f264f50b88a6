// SPDX-License-Identifier: MIT
/** The NBD server from which a migration reads the source's bitmaps. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type NbdTargetAddress, parseNbdTarget } from '../../protocol/nbd/uri.js';
import type { JsonObject } from '../../protocol/qapi/types.js';
import { NbdClient } from '../nbd/client/client.js';
import type { MonitorSide } from './monitor-side.js';
import { parseMonitor } from './qmp.js';

const ADVICE = '--from-nbd URI tells where the NBD server of the source is';
/** What both programs answer when there is one already. */
const RUNNING = 'NBD server already running';

export interface SourceServer {
  readonly address: NbdTargetAddress;
  /** Ends it when it was started for this; once is enough. */
  stop(): Promise<void>;
}

export interface SourceServerOptions {
  /** The monitor, as on the command line. */
  readonly from: string;
  /** As told on the command line. */
  readonly fromNbd?: string | undefined;
}

/**
 * The one that was told, or that the daemon has; where it has none one is started, on a UNIX socket
 * and so only for who is on the same machine.
 *
 * @throws Error when there is none that answers
 */
export async function sourceServer(
  source: MonitorSide,
  { from, fromNbd }: SourceServerOptions,
): Promise<SourceServer> {
  if (fromNbd !== undefined) return lasting(parseNbdTarget(fromNbd).address);
  const told = await listeners(source);
  const monitor = parseMonitor(from);
  for (const shown of told) {
    const address = reachable(shown, 'host' in monitor ? monitor.host : '127.0.0.1');
    if (address === undefined) continue;
    const server = await lasting(address).catch(() => undefined);
    if (server !== undefined) return server;
  }
  if (told.length === 0 && 'path' in monitor) return startServer(source);
  throw new Error(`the source has no NBD server that could be reached from here: ${ADVICE}`);
}

/** Where a daemon of ours listens; QEMU has no such query. */
async function listeners(source: MonitorSide): Promise<JsonObject[]> {
  const commands = (await source.run('query-commands')) as JsonObject[];
  if (!commands.some(({ name }) => name === 'query-nbd-server')) return [];
  const info = (await source.run('query-nbd-server')) as JsonObject;
  return info.addresses as JsonObject[];
}

/** @param host of the daemon, for a server that listens on all its addresses */
function reachable(shown: JsonObject, host: string): NbdTargetAddress | undefined {
  if (shown.type === 'unix') return { type: 'unix', path: String(shown.path) };
  if (shown.type !== 'inet') return undefined;
  const anywhere = ['0.0.0.0', '::', ''].includes(String(shown.host));
  return { type: 'inet', host: anywhere ? host : String(shown.host), port: Number(shown.port) };
}

async function lasting(address: NbdTargetAddress): Promise<SourceServer> {
  try {
    await NbdClient.list({ address });
  } catch (error) {
    throw new Error('the NBD server of the source does not answer', { cause: error });
  }
  return { address, stop: async () => undefined };
}

async function startServer(source: MonitorSide): Promise<SourceServer> {
  // Loaded by who needs it: every start of the command would take 3 ms longer.
  const { mkdtemp, rm } = await import('node:fs/promises');
  const folder = await mkdtemp(join(tmpdir(), 'diskferry-'));
  const path = join(folder, 'nbd.sock');
  const address: NbdTargetAddress = { type: 'unix', path };
  let stopped = false;
  const stop = async (): Promise<void> => {
    if (stopped) return;
    stopped = true;
    await source.run('nbd-server-stop').catch(() => undefined);
    await rm(folder, { recursive: true, force: true });
  };
  try {
    await source.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  } catch (error) {
    stopped = true;
    await rm(folder, { recursive: true, force: true });
    const isRunning = error instanceof Error && String(error.cause).includes(RUNNING);
    throw isRunning
      ? new Error(`the source does not tell where its NBD server is: ${ADVICE}`)
      : error;
  }
  try {
    return { ...(await lasting(address)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
