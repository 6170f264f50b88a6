// SPDX-License-Identifier: MIT
/** The NBD client against other people's servers. */
import { randomBytes } from 'node:crypto';
import { existsSync, writeFileSync } from 'node:fs';
import { readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { NbdClient } from '../../src/nbd/client/client.js';
import { waitUntil } from '../support/daemon.js';
import { collect, spawnTracked } from '../support/peers.js';
import { type Scope, testScope } from '../support/temp.js';

const MIB = 1024 * 1024;

interface Server {
  readonly address: { readonly type: 'unix'; readonly path: string };
  readonly dir: string;
  kill(): Promise<void>;
}

/** Starts a server that listens on a UNIX socket, given by `args`. */
async function startServer(
  scope: Scope,
  program: string,
  args: (path: string, dir: string) => string[],
  dir?: string,
): Promise<Server> {
  const folder = dir ?? (await scope.tempDir());
  const path = join(folder, 'nbd.sock');
  const child = spawnTracked(program, args(path, folder));
  const output = collect(child.stderr);
  child.stdout?.resume();
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL');
    await exited;
  };
  scope.defer(kill);
  await waitUntil(() => existsSync(path) || child.exitCode !== null, {
    what: () => `${program} to listen; it said:\n${output.text()}`,
  });
  if (child.exitCode !== null) throw new Error(`${program} ended:\n${output.text()}`);
  return { address: { type: 'unix', path }, dir: folder, kill };
}

function nbdkit(scope: Scope, ...args: string[]): Promise<Server> {
  return startServer(scope, 'nbdkit', (path) => ['-f', '--exit-with-parent', '-U', path, ...args]);
}

async function connect(scope: Scope, server: Server, exportName = ''): Promise<NbdClient> {
  const client = await NbdClient.connect({
    address: server.address,
    exportName,
    openTimeoutSeconds: 20, // the socket's file is there before anybody listens
  });
  scope.defer(() => client.close());
  return client;
}

/** Writes and reads back in many sizes at once, then looks at all of it. */
async function exercise(client: NbdClient): Promise<void> {
  const model = Buffer.alloc(4 * MIB);
  await client.write(0, model);
  const pieces = [512, 4096, 65_536, 262_144, MIB].flatMap((length, index) => [
    { offset: index * 65_536, data: randomBytes(512) },
    { offset: MIB + index * 524_288, data: randomBytes(Math.min(length, 524_288)) },
  ]);
  await Promise.all(pieces.map(({ offset, data }) => client.write(offset, data)));
  for (const { offset, data } of pieces) data.copy(model, offset);
  await client.flush();
  const parts = Array.from({ length: 64 }, () => Buffer.alloc(65_536));
  await Promise.all(parts.map((part, index) => client.read(index * 65_536, part)));
  expect(Buffer.concat(parts).equals(model)).toBe(true);
  const small = Array.from({ length: 256 }, () => Buffer.alloc(512));
  await Promise.all(small.map((part, index) => client.read(index * 4096, part)));
  for (const [index, part] of small.entries()) {
    expect(part.equals(model.subarray(index * 4096, index * 4096 + 512))).toBe(true);
  }
  const whole = Buffer.alloc(4 * MIB);
  await client.read(0, whole);
  expect(whole.equals(model)).toBe(true);
}

describe('nbdkit', () => {
  test('data comes back as it was written', async () => {
    const scope = testScope();
    const client = await connect(scope, await nbdkit(scope, 'memory', '8M'));
    expect(client.size).toBe(8 * MIB);
    expect(client.replies).toBe('structured');
    expect(client.contexts).toEqual(['base:allocation']);
    expect(client.capabilities.multiConn).toBe(true);
    await exercise(client);
  });

  test('a server without options takes the bare way in', async () => {
    const scope = testScope();
    const client = await connect(scope, await nbdkit(scope, '--mask-handshake=0', 'memory', '8M'));
    expect(client.replies).toBe('simple');
    await exercise(client);
  });

  test('a server without structured replies has no status', async () => {
    const scope = testScope();
    const client = await connect(scope, await nbdkit(scope, '--no-sr', 'memory', '8M'));
    expect(client.replies).toBe('simple');
    expect(client.contexts).toEqual([]);
    await exercise(client);
  });

  test('an oldstyle server is refused with the reason', async () => {
    const scope = testScope();
    const server = await nbdkit(scope, '--oldstyle', 'memory', '8M');
    await expect(connect(scope, server)).rejects.toThrow(/oldstyle/);
  });

  test('keeps to block sizes that the server insists on', async () => {
    const scope = testScope();
    const sizes = ['blocksize-minimum=4096', 'blocksize-preferred=64K', 'blocksize-maximum=128K'];
    const args = ['--filter=blocksize-policy', 'memory', '8M', ...sizes];
    const server = await nbdkit(scope, ...args, 'blocksize-error-policy=error');
    const client = await connect(scope, server);
    expect(client.blockSizes).toEqual({
      minimum: 4096,
      preferred: 65_536,
      maximum: 131_072,
      advertised: true,
    });
    const data = randomBytes(MIB);
    await client.write(0, data);
    const back = Buffer.alloc(MIB);
    await client.read(0, back);
    expect(back.equals(data)).toBe(true);
  });

  test('reports holes and zeroes', async () => {
    const scope = testScope();
    const client = await connect(scope, await nbdkit(scope, 'memory', '8M'));
    await client.write(MIB, Buffer.alloc(65_536, 1));
    expect(await client.blockStatus(0, 8 * MIB)).toEqual([
      { length: MIB, flags: 3 },
      { length: 65_536, flags: 0 },
      { length: 7 * MIB - 65_536, flags: 3 },
    ]);
    await client.trim(MIB, 65_536);
    await client.writeZeroes(2 * MIB, MIB, { noHole: true });
    const [first] = await client.blockStatus(0, 2 * MIB, { reqOne: true });
    expect(first).toEqual({ length: 2 * MIB, flags: 3 });
  });

  test('an injected error ends its request alone', async () => {
    const scope = testScope();
    const args = ['--filter=error', 'memory', '8M', 'error=ENOSPC', 'error-pwrite-rate=100%'];
    const client = await connect(scope, await nbdkit(scope, ...args));
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: 'DF_NO_SPACE',
      context: { errno: 'ENOSPC' },
    });
    await client.read(0, Buffer.alloc(512));
  });

  test('several connections share slow requests', async () => {
    const scope = testScope();
    const args = ['--filter=delay', '--threads=4', 'memory', '8M', 'rdelay=20ms'];
    const server = await nbdkit(scope, ...args);
    const client = await NbdClient.connect({
      address: server.address,
      connections: 4,
      openTimeoutSeconds: 20,
    });
    scope.defer(() => client.close());
    await expect.poll(() => client.connectionCount).toBe(4);
    const parts = Array.from({ length: 32 }, () => Buffer.alloc(4096));
    await Promise.all(parts.map((part, index) => client.read(index * 4096, part)));
  });

  test('lists exports', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    for (const name of ['a', 'b']) await writeFile(join(dir, name), Buffer.alloc(4096));
    const server = await nbdkit(scope, 'file', `dir=${dir}`);
    const client = await connect(scope, server, 'a');
    const listed = await NbdClient.list({ address: server.address });
    expect(listed.map(({ name }) => name).sort()).toEqual(['a', 'b']);
    expect(await NbdClient.listMetaContexts({ address: server.address }, 'a')).toEqual([
      'base:allocation',
    ]);
    await client.flush();
  });

  test('a killed and restarted server loses no write', async () => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const file = join(dir, 'disk');
    await writeFile(file, Buffer.alloc(4 * MIB));
    const args = (path: string): string[] => ['-f', '-U', path, 'file', file];
    const first = await startServer(scope, 'nbdkit', args, dir);
    const client = await NbdClient.connect({
      address: first.address,
      reconnectDelaySeconds: 60,
      openTimeoutSeconds: 20,
    });
    scope.defer(() => client.close());
    const blocks = Array.from({ length: 1024 }, () => randomBytes(4096));
    const writes = blocks.map((block, index) => client.write(index * 4096, block));
    await writes[3];
    await first.kill();
    await rm(first.address.path);
    await startServer(scope, 'nbdkit', args, dir);
    await Promise.all(writes);
    await client.flush();
    expect((await readFile(file)).equals(Buffer.concat(blocks))).toBe(true);
  });
});

describe('qemu-nbd', () => {
  async function qemuNbd(scope: Scope, ...args: string[]): Promise<Server> {
    const dir = await scope.tempDir();
    const file = join(dir, 'disk');
    await writeFile(file, '');
    await truncate(file, 8 * MIB);
    return startServer(
      scope,
      'qemu-nbd',
      (path) => ['-t', '-k', path, '-f', 'raw', ...args, file],
      dir,
    );
  }

  test('data comes back as it was written', async () => {
    const scope = testScope();
    const client = await connect(scope, await qemuNbd(scope, '-x', 'disk'), 'disk');
    expect(client.replies).toBe('structured');
    await exercise(client);
    await client.writeZeroes(0, 8 * MIB, { fua: true });
    const extents = await client.blockStatus(0, 8 * MIB);
    expect(extents.every(({ flags }) => (flags & 2) !== 0)).toBe(true);
  });

  test('a missing export is named', async () => {
    const scope = testScope();
    const server = await qemuNbd(scope, '-x', 'disk');
    await (await connect(scope, server, 'disk')).close();
    const options = { address: server.address, exportName: 'other' };
    await expect(NbdClient.connect(options)).rejects.toMatchObject({
      code: 'DF_NOT_FOUND',
      message: expect.stringMatching(/^Requested export not available; server reported: /),
    });
  });

  test('a read-only export is not written', async () => {
    const scope = testScope();
    const client = await connect(scope, await qemuNbd(scope, '-r'));
    expect(client.capabilities.readOnly).toBe(true);
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: 'DF_READ_ONLY',
    });
  });
});

test('qemu-storage-daemon: data comes back as it was written, over several connections', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  await writeFile(join(dir, 'disk'), '');
  await truncate(join(dir, 'disk'), 8 * MIB);
  const server = await startServer(
    scope,
    'qemu-storage-daemon',
    (path) => [
      '--blockdev',
      `driver=file,node-name=disk,filename=${dir}/disk,discard=unmap`,
      '--nbd-server',
      `addr.type=unix,addr.path=${path},max-connections=16`,
      '--export',
      'type=nbd,id=e,node-name=disk,name=disk,writable=on,allocation-depth=on',
    ],
    dir,
  );
  const contexts = ['base:allocation', 'qemu:allocation-depth'];
  const client = await NbdClient.connect({
    address: server.address,
    exportName: 'disk',
    metaContexts: contexts,
    openTimeoutSeconds: 20,
  });
  scope.defer(() => client.close());
  expect(client.contexts).toEqual(contexts);
  await exercise(client);
  const statuses = await client.blockStatuses(0, 8 * MIB);
  expect(statuses.get('qemu:allocation-depth')).toEqual([{ length: 8 * MIB, flags: 1 }]);
});

test('nbd-server: data comes back as it was written', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  await writeFile(join(dir, 'disk'), '');
  await truncate(join(dir, 'disk'), 8 * MIB);
  const config = join(dir, 'config');
  const server = await startServer(
    scope,
    'sh',
    (path) => {
      const text = `[generic]\nunixsock=${path}\n[disk]\nexportname=${dir}/disk\nflush=true\nfua=true\n`;
      writeFileSync(config, text);
      return ['-c', `exec nbd-server -d -C ${config} -p ${dir}/pid`];
    },
    dir,
  );
  const client = await connect(scope, server, 'disk');
  expect(client.size).toBe(8 * MIB);
  await exercise(client);
});
