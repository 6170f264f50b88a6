// SPDX-License-Identifier: MIT
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { waitUntil } from '../../support/daemon.js';
import { CMD, CMD_FLAG, ERROR } from '../../support/nbd-wire.js';
import { spawnTracked } from '../../support/peers.js';
import { testScope } from '../../support/temp.js';
import { open, type SpecServer, startOwnServer, writableExport } from './fixture.js';

/** Traces the calls that put data onto the disk; `count` waits for the trace to catch up. */
async function traceSyncs(server: SpecServer): Promise<{ syncs(): Promise<string[]> }> {
  const path = join(server.dir, 'trace');
  const calls = 'trace=fsync,fdatasync,sync_file_range,pwritev2';
  const tracer = spawnTracked('strace', [
    '-f',
    '-y',
    '-e',
    calls,
    '-o',
    path,
    '-p',
    `${server.daemon.pid}`,
  ]);
  testScope().defer(() => tracer.kill('SIGTERM'));
  let said = '';
  tracer.stderr?.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await waitUntil(() => said.includes('attached'), { what: () => `strace to attach: ${said}` });
  return {
    async syncs() {
      const lines = (await readFile(path, 'utf8')).split('\n');
      return lines.filter((line) => /f(data)?sync\(\d+<.*disk\.raw>|RWF_D?SYNC/.test(line));
    },
  };
}

it('syncs the file before it answers FLUSH', async () => {
  const server = await startOwnServer();
  const { client } = await open(server, 'disk');
  const trace = await traceSyncs(server);
  expect(await client.callError({ type: CMD.WRITE, data: Buffer.alloc(512) })).toBe(0);
  expect(await trace.syncs()).toHaveLength(0);
  expect(await client.callError({ type: CMD.FLUSH })).toBe(0);
  expect(await trace.syncs()).not.toHaveLength(0);
});

it('syncs the file before it answers a write, zeroes or trim with FUA', async () => {
  const server = await startOwnServer();
  const { client } = await open(server, 'disk');
  const trace = await traceSyncs(server);
  let before = 0;
  for (const type of [CMD.WRITE, CMD.WRITE_ZEROES, CMD.TRIM]) {
    const range = type === CMD.WRITE ? { data: Buffer.alloc(4096) } : { length: 4096 };
    expect(await client.callError({ type, flags: CMD_FLAG.FUA, ...range })).toBe(0);
    const { length } = await trace.syncs();
    expect(length).toBeGreaterThan(before);
    before = length;
  }
});

/** A node that fails requests of one type with an error number of the operating system. */
function failing(type: string, errno: number) {
  return (dir: string): string[] => {
    const inject = `inject-error.0.iotype=${type},inject-error.0.errno=${errno}`;
    return [
      ...['--blockdev', `driver=file,node-name=file,filename=${dir}/disk.raw`],
      ...writableExport('bad', `driver=blkdebug,image=file,inject-error.0.event=none,${inject}`),
    ];
  };
}

it('reports the failure of a write, and never success', async () => {
  const server = await startOwnServer(failing('write', 5));
  const { client } = await open(server, 'bad');
  expect(await client.callError({ type: CMD.WRITE, data: Buffer.alloc(512) })).toBe(ERROR.EIO);
});

it('reports the failure of a flush', async () => {
  const server = await startOwnServer(failing('flush', 5));
  const { client } = await open(server, 'bad');
  expect(await client.callError({ type: CMD.WRITE, data: Buffer.alloc(512) })).toBe(0);
  expect(await client.callError({ type: CMD.FLUSH })).toBe(ERROR.EIO);
});

it('reports the failure of zeroing', async () => {
  const server = await startOwnServer(failing('write-zeroes', 5));
  const { client } = await open(server, 'bad');
  expect(await client.callError({ type: CMD.WRITE_ZEROES, length: 4096 })).toBe(ERROR.EIO);
});

it('reports a failed read without data: in a simple reply or an error chunk', async () => {
  const server = await startOwnServer(failing('read', 5));
  const { client } = await open(server, 'bad');
  const [simple] = await client.call({ type: CMD.READ, length: 512 });
  expect(simple).toMatchObject({ error: ERROR.EIO, payload: Buffer.alloc(0) });
  const { client: other } = await open(server, 'bad', { structured: true });
  for (const flags of [0, CMD_FLAG.DF]) {
    const replies = await other.call({ type: CMD.READ, flags, length: 512 });
    expect(replies.some(({ error }) => error === ERROR.EIO)).toBe(true);
  }
  expect(await other.callError({ type: CMD.FLUSH })).toBe(0);
});

it('reports EDQUOT and EFBIG as ENOSPC', async () => {
  for (const errno of [122, 27]) {
    const server = await startOwnServer(failing('write', errno));
    const { client } = await open(server, 'bad');
    const error = await client.callError({ type: CMD.WRITE, data: Buffer.alloc(512) });
    expect(error).toBe(ERROR.ENOSPC);
  }
});
