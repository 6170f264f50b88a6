// SPDX-License-Identifier: MIT
/** Mirrors whose writes reach the target before they are done, as managers and operators ask for them. */
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { KIB, MIB } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 16 * MIB;

interface Bench {
  readonly source: ServedImage;
  readonly target: ServedImage;
  readonly qmp: QmpClient;
  readonly mirror: (options: object) => Promise<unknown>;
}

/** A disk in one daemon, an empty one in another, and the second as a node of the first. */
async function twoDaemons(scope: Scope): Promise<Bench> {
  const data = [{ offset: 0, length: 8 * MIB }];
  const source = await serveImage(scope, { size: SIZE, data, seed: 3 });
  const target = await serveImage(scope, { size: SIZE, data: [] });
  const qmp = await source.daemon.qmp(scope);
  await qmp.execute('blockdev-add', {
    driver: 'nbd',
    'node-name': 'target',
    server: { type: 'unix', path: target.socketPath },
    export: 'disk',
  });
  const common = { 'job-id': 'job', device: 'disk', target: 'target', sync: 'full' };
  const mirror = (options: object) =>
    qmp.execute('blockdev-mirror', { ...common, 'auto-dismiss': false, ...options });
  return { source, target, qmp, mirror };
}

async function job(qmp: QmpClient): Promise<Record<string, unknown>> {
  const [info] = (await qmp.execute('query-block-jobs')) as Record<string, unknown>[];
  return info ?? {};
}

function connectTo({ socketPath }: ServedImage): Promise<NbdClient> {
  return NbdClient.connect({ address: { type: 'unix', path: socketPath }, exportName: 'disk' });
}

async function end(qmp: QmpClient, force: boolean): Promise<void> {
  await qmp.execute('block-job-cancel', { device: 'job', force });
  await qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
}

describe('copy-mode', () => {
  it('write-blocking: what a client was told is written is in the target at once', async () => {
    const scope = testScope();
    const { source, target, qmp, mirror } = await twoDaemons(scope);
    await mirror({ 'copy-mode': 'write-blocking' });
    await qmp.event('BLOCK_JOB_READY');
    expect(await job(qmp)).toMatchObject({
      'copy-mode': 'write-blocking',
      'actively-synced': true,
    });
    const guest = await connectTo(source);
    scope.defer(() => guest.close());
    const reader = await connectTo(target);
    scope.defer(() => reader.close());
    for (const at of [1000, 3 * MIB + 7, SIZE - 600]) {
      const data = Buffer.alloc(600, at % 251);
      await guest.write(at, data);
      const there = Buffer.alloc(600);
      await reader.read(at, there);
      expect(there.equals(data)).toBe(true);
    }
    await end(qmp, true);
    await runPeer('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source.path, target.path]);
  });

  it('changes while the job runs, both ways, and says what it is', async () => {
    const scope = testScope();
    const { qmp, mirror } = await twoDaemons(scope);
    await mirror({});
    await qmp.event('BLOCK_JOB_READY');
    expect(await job(qmp)).toMatchObject({ 'copy-mode': 'background', 'actively-synced': false });
    const change = (options: object) =>
      qmp.execute('block-job-change', { id: 'job', type: 'mirror', ...options });
    await change({ 'copy-mode': 'write-blocking' });
    expect(await job(qmp)).toMatchObject({
      'copy-mode': 'write-blocking',
      'actively-synced': true,
    });
    await change({ 'copy-mode': 'background' });
    expect(await job(qmp)).toMatchObject({ 'copy-mode': 'background', 'actively-synced': false });
    await expect(change({ type: 'backup' })).rejects.toThrow(
      "Job 'job' is of type 'mirror', not 'backup'",
    );
    await expect(
      qmp.execute('block-job-change', { id: 'none', type: 'mirror', 'copy-mode': 'background' }),
    ).rejects.toThrow("Block job 'none' not found");
    await end(qmp, false);
  });

  it('auto: a writer faster than the copy is told of, and the mirror becomes ready all the same', async () => {
    const scope = testScope();
    const { source, target, qmp, mirror } = await twoDaemons(scope);
    const guest = await connectTo(source);
    scope.defer(() => guest.close());
    await mirror({ 'copy-mode': 'auto', speed: 256 * KIB });
    let writing = true;
    const writer = (async () => {
      for (let n = 0; writing; n++) {
        const at = (n * 61) % 128;
        await guest.write(at * 65536, Buffer.alloc(65536, 1 + (n % 255)));
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })();
    const { data } = await qmp.event('BLOCK_JOB_NOT_CONVERGING');
    expect(data).toMatchObject({ device: 'job', 'copy-mode': 'write-blocking' });
    // Writes no longer add to what is to be copied, so at whatever speed there is an end to it: at
    // this one while the test waits.
    await qmp.execute('block-job-set-speed', { device: 'job', speed: 2 * MIB });
    await qmp.event('BLOCK_JOB_READY');
    writing = false;
    await writer;
    await end(qmp, false);
    await runPeer('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source.path, target.path]);
  });
});
