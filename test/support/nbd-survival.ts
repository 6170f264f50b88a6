// SPDX-License-Identifier: MIT
/** A daemon that is attacked, and the check that it took no harm. */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'vitest';
import { type Daemon, startDaemon, waitUntil } from './daemon.js';
import { CMD } from './nbd-wire.js';
import { RawNbd } from './raw-nbd.js';
import { Scope, testScope } from './temp.js';

export const MIB = 1024 * 1024;
export const TARGET_SIZE = 64 * MIB;
/** Resident memory that no attack may drive the daemon past, bytes. */
export const RSS_MAX = 400 * MIB;
/** A byte of the target that no attack writes to, and what is there. */
const MARK_OFFSET = TARGET_SIZE - 8192;
const MARK = 0x5c;

export interface Target {
  readonly daemon: Daemon;
  readonly socket: string;
  readonly imagePath: string;
  /** Another client is served, no descriptor is left, memory is within its bound. */
  survived(): Promise<void>;
  /** One request of a client that does nothing wrong. */
  servesOthers(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Starts a daemon with the writable export `disk` of `TARGET_SIZE` bytes.
 * @param serverOptions appended to `--nbd-server`, such as `max-connections=5`
 */
export async function startTarget(serverOptions = ''): Promise<Target> {
  const scope = new Scope();
  try {
    return await startIn(scope, serverOptions);
  } catch (error) {
    await scope.close();
    throw error;
  }
}

async function startIn(scope: Scope, serverOptions: string): Promise<Target> {
  const dir = await scope.tempDir();
  const [socket, imagePath] = [join(dir, 'nbd.sock'), join(dir, 'disk.raw')];
  const image = await open(imagePath, 'w');
  await image.truncate(TARGET_SIZE);
  await image.write(Buffer.alloc(4096, MARK), 0, 4096, MARK_OFFSET);
  await image.close();
  const listen = `addr.type=unix,addr.path=${socket}${serverOptions && `,${serverOptions}`}`;
  const daemon = await startDaemon(scope, [
    ...['--blockdev', `driver=file,node-name=disk,filename=${imagePath},discard=unmap`],
    ...['--nbd-server', listen],
    ...['--export', 'type=nbd,id=e,node-name=disk,name=disk,writable=on'],
  ]);

  const servesOthers = async (): Promise<void> => {
    const own = new Scope();
    try {
      const client = await RawNbd.handshake(own, socket);
      await client.go('disk');
      const request = { type: CMD.READ, offset: MARK_OFFSET, length: 4096 };
      const [reply] = await client.call(request);
      expect(reply?.payload.equals(Buffer.alloc(4096, MARK))).toBe(true);
    } finally {
      await own.close();
    }
  };

  await servesOthers(); // opens what is opened once, such as the threads' descriptors
  const sockets = async (): Promise<number> =>
    (await daemon.descriptors()).filter((link) => link.startsWith('socket:')).length;
  const images = async (): Promise<number> =>
    (await daemon.descriptors()).filter((link) => link.includes(imagePath)).length;
  let socketsAtRest = await sockets();
  await waitUntil(
    async () => {
      const now = await sockets();
      const settled = now === socketsAtRest;
      socketsAtRest = now;
      return settled;
    },
    { what: () => 'the number of sockets to settle' },
  );
  const imagesAtRest = await images();

  const survived = async (): Promise<void> => {
    expect(daemon.exit).toBeUndefined();
    await servesOthers();
    await waitUntil(async () => (await sockets()) <= socketsAtRest, {
      what: () => `the sockets to be closed; ${socketsAtRest} are open at rest`,
    });
    expect(await images()).toBe(imagesAtRest);
    expect((await daemon.memory()).rss).toBeLessThan(RSS_MAX);
  };
  return { daemon, socket, imagePath, servesOthers, survived, close: () => scope.close() };
}

/** Runs an attack in a scope that is closed before the daemon is looked at. */
export async function attack(target: Target, run: (scope: Scope) => Promise<void>): Promise<void> {
  const scope = new Scope();
  testScope().defer(() => scope.close());
  await run(scope);
  await scope.close();
  await target.survived();
}

/** Numbers from a seed, the same in every run: xorshift32. */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
