// SPDX-License-Identifier: MIT
/** Secrets and encrypted disks through the whole daemon. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { runPeer } from '../support/peers.js';
import type { QmpClient } from '../support/qmp-client.js';
import { testScope } from '../support/temp.js';

const SIZE = 1024 * 1024;

async function start(args: readonly string[] = []) {
  const scope = testScope();
  const daemon = await startDaemon(scope, args);
  return { scope, daemon, qmp: await daemon.qmp(scope) };
}

const addSecret = (qmp: QmpClient, id: string, data: string) =>
  qmp.execute('object-add', { 'qom-type': 'secret', id, data });

describe('secret objects', () => {
  it('tell everything but what is in them', async () => {
    const { qmp, daemon } = await start(['--object', 'secret,id=cli,data=S3cret']);
    await addSecret(qmp, 's', 'S3cret');
    const get = (property: string) => ({ path: '/objects/s', property });
    expect(await qmp.execute('qom-list', { path: '/objects' })).toEqual([
      { name: 'type', type: 'string' },
      { name: 'cli', type: 'child<secret>' },
      { name: 's', type: 'child<secret>' },
    ]);
    const listed = await qmp.execute<{ name: string }[]>('qom-list', { path: 's' });
    expect(listed.map(({ name }) => name)).toEqual([
      'type',
      'iv',
      'keyid',
      'loaded',
      'format',
      'file',
      'data',
    ]);
    for (const [property, value] of [
      ['type', 'secret'],
      ['format', 'raw'],
      ['loaded', true],
      ['keyid', ''],
      ['iv', ''],
      ['file', ''],
    ] as const) {
      expect(await qmp.execute('qom-get', get(property))).toBe(value);
    }
    expect((await qmp.refused('qom-get', get('data'))).desc).toBe(
      "Property 'secret.data' is not readable",
    );
    const set = await qmp.refused('qom-set', { ...get('data'), value: 'other' });
    expect(set.desc).toBe("Property 'secret.data' is not writable");
    const twice = { 'qom-type': 'secret', id: 's', data: 'S3cret' };
    expect((await qmp.refused('object-add', twice)).desc).toBe(
      "attempt to add duplicate property 's' to object (type 'container')",
    );
    const group = { 'qom-type': 'throttle-group', id: 's' };
    expect((await qmp.refused('object-add', group)).desc).toContain('duplicate property');
    await qmp.execute('object-del', { id: 's' });
    expect((await qmp.refused('object-del', { id: 's' })).desc).toBe("object 's' not found");
    expect(daemon.log).not.toContain('S3cret');
  });

  it('are read from files, and refused with the reason', async () => {
    const { qmp, daemon } = await start();
    const file = join(daemon.dir, 'passphrase');
    await writeFile(file, 'correct horse');
    await qmp.execute('object-add', { 'qom-type': 'secret', id: 'f', file });
    const missing = { 'qom-type': 'secret', id: 'g', file: `${file}.not` };
    const { desc } = await qmp.refused('object-add', missing);
    expect(desc).toMatch(/^Unable to read .*passphrase\.not: .*no such file/i);
  });
});

describe('encrypted disks', () => {
  it('are made, opened by QEMU, and opened again here', async () => {
    const { qmp, daemon } = await start();
    await addSecret(qmp, 's', 'correct horse');
    await addSecret(qmp, 'wrong', 'battery staple');
    const filename = join(daemon.dir, 'disk.luks');
    const file = { driver: 'file', filename };
    const create = async (id: string, options: object): Promise<string | undefined> => {
      await qmp.execute('blockdev-create', { 'job-id': id, options });
      const concluded = (data: Record<string, unknown>) =>
        data.id === id && data.status === 'concluded';
      await qmp.event('JOB_STATUS_CHANGE', concluded);
      const jobs = await qmp.execute<{ id: string; error?: string }[]>('query-jobs');
      await qmp.execute('job-dismiss', { id });
      return jobs.find((job) => job.id === id)?.error;
    };
    expect(await create('file', { ...file, size: 0 })).toBeUndefined();
    const disk = { driver: 'luks', file, size: SIZE, 'iter-time': 10 };
    expect(await create('none', disk)).toBe("Parameter 'key-secret' is required for cipher");
    const options = { 'cipher-alg': 'aes-128', 'hash-alg': 'sha512', preallocation: 'falloc' };
    expect(await create('luks', { ...disk, ...options, 'key-secret': 's' })).toBeUndefined();
    const info = ['info', '--object', 'secret,id=s,data=correct horse', '--output=json'];
    const image = `driver=luks,key-secret=s,file.filename=${filename}`;
    const { stdout } = await runPeer('qemu-img', [...info, '--image-opts', image]);
    expect(JSON.parse(stdout)).toMatchObject({
      'virtual-size': SIZE,
      'format-specific': { data: { 'cipher-alg': 'aes-128', 'hash-alg': 'sha512' } },
    });
    const node = { driver: 'luks', 'node-name': 'disk', file };
    const wrong = await qmp.refused('blockdev-add', { ...node, 'key-secret': 'wrong' });
    expect(wrong.desc).toBe('Invalid password, cannot unlock any keyslot');
    await qmp.execute('blockdev-add', { ...node, 'key-secret': 's' });
    await qmp.execute('blockdev-del', { 'node-name': 'disk' });
  });
});
