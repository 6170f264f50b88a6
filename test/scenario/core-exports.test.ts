// SPDX-License-Identifier: MIT
/** Exports and the run state under QMP control, with clients. */
import { describe, expect, it } from 'vitest';
import { NbdClient } from '../../src/nbd.js';
import { waitUntil } from '../support/daemon.js';
import { MIB } from '../support/images.js';
import { tryPeer } from '../support/peers.js';
import { type ServedImage, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

function connect(scope: Scope, served: ServedImage): Promise<NbdClient> {
  const connecting = NbdClient.connect({
    address: { type: 'unix', path: served.socketPath },
    exportName: 'disk',
    connections: 1,
  });
  scope.defer(async () => (await connecting).close());
  return connecting;
}

describe('removing an export', () => {
  it('is refused while it has clients, in the words of QEMU, and done when they are gone', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    const error = await qmp.refused('block-export-del', { id: 'disk' });
    expect(error).toEqual({ class: 'GenericError', desc: "export 'disk' still in use" });
    await client.close();
    await waitUntil(
      async () => {
        const info = await qmp.execute<{ connections: unknown[] }>('query-nbd-server');
        return info.connections.length === 0;
      },
      { what: () => 'the client to be gone' },
    );
    await qmp.execute('block-export-del', { id: 'disk' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    expect(await qmp.execute('query-block-exports')).toEqual([]);
  });

  it('tells of the end of an idle export before it answers, and lists the newest first', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    await qmp.execute('nbd-server-add', { device: 'disk', name: 'second' });
    const listed = await qmp.execute<{ id: string }[]>('query-block-exports');
    expect(listed.map(({ id }) => id)).toEqual(['second', 'disk']);
    const ended = () => qmp.events.map(({ event, data }) => [event, data]);
    await qmp.execute('nbd-server-remove', { name: 'second' });
    expect(ended()).toEqual([['BLOCK_EXPORT_DELETED', { id: 'second' }]]);
    await qmp.execute('block-export-del', { id: 'disk' });
    expect(ended().slice(1)).toEqual([['BLOCK_EXPORT_DELETED', { id: 'disk' }]]);
    await qmp.execute('blockdev-del', { 'node-name': 'disk' });
  });

  it('drops clients in mode hard', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    await qmp.execute('block-export-del', { id: 'disk', mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED');
    await expect(client.read(0, Buffer.alloc(512))).rejects.toThrow('lost the NBD server');
  });

  it('hides it from new clients in mode hide, and leaves the old ones alone', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    await qmp.execute('block-export-del', { id: 'disk', mode: 'hide' });
    expect((await tryPeer('nbdinfo', ['--size', served.uri])).code).not.toBe(0);
    await client.write(0, Buffer.alloc(512, 1));
    await client.close();
    await qmp.event('BLOCK_EXPORT_DELETED', ({ id }) => id === 'disk');
  });

  it.each([
    ['block-export-del', { id: 'disk' }],
    ['nbd-server-remove', { name: 'disk' }],
  ])('finds an export that is hidden: %s', async (command, which) => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    await qmp.execute(command, { ...which, mode: 'hide' });
    const [listed] = await qmp.execute<Record<string, unknown>[]>('query-block-exports');
    expect(listed).toMatchObject({ id: 'disk', 'shutting-down': true });
    expect((await qmp.refused(command, which)).desc).toBe("export 'disk' still in use");
    await qmp.execute(command, { ...which, mode: 'hard' });
    await qmp.event('BLOCK_EXPORT_DELETED', ({ id }) => id === 'disk');
    await expect(client.read(0, Buffer.alloc(512))).rejects.toThrow('lost the NBD server');
    expect(await qmp.execute('query-block-exports')).toEqual([]);
  });
});

describe('stop and cont', () => {
  it('hold requests back and let them go on', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    await client.write(0, Buffer.alloc(512, 1));
    await qmp.execute('stop');
    await qmp.event('STOP');
    expect(await qmp.execute('query-status')).toMatchObject({ running: false, status: 'paused' });
    let done = false;
    const held = client.write(0, Buffer.alloc(512, 2)).then(() => {
      done = true;
    });
    const buffer = Buffer.alloc(512);
    await qmp.execute('query-version');
    expect(done).toBe(false);
    await qmp.execute('cont');
    await qmp.event('RESUME');
    await held;
    await client.read(0, buffer);
    expect(buffer[0]).toBe(2);
  });

  it('do not keep the daemon from ending while requests are held back', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const client = await connect(scope, served);
    await qmp.execute('stop');
    const held = client.write(0, Buffer.alloc(512, 2)).catch(() => undefined);
    await qmp.execute('query-version');
    expect((await served.daemon.stop()).code).toBe(0);
    await held;
  });
});

describe('the server', () => {
  it('is started once, stopped with its exports, and can be started again', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } };
    expect((await qmp.refused('nbd-server-start', { addr })).desc).toBe(
      'NBD server already running',
    );
    await qmp.execute('nbd-server-stop');
    await qmp.event('BLOCK_EXPORT_DELETED');
    expect((await qmp.refused('nbd-server-stop')).desc).toBe('NBD server not running');
    await qmp.execute('nbd-server-start', { addr, 'max-connections': 1 });
    await qmp.execute('block-export-add', { type: 'nbd', id: 'again', 'node-name': 'disk' });
    const info = await qmp.execute<{ addresses: { port: string }[] }>('query-nbd-server');
    const port = Number(info.addresses[0]?.port);
    const uri = `nbd://127.0.0.1:${port}/disk`;
    expect((await tryPeer('nbdinfo', ['--size', uri])).code).toBe(0);
  });
});

describe('query-named-block-nodes and blockdev-del', () => {
  it('show and guard nodes as QEMU does', async () => {
    const scope = testScope();
    const served = await serveImage(scope, { size: MIB });
    const qmp = await served.daemon.qmp(scope);
    const nodes = await qmp.execute<Record<string, unknown>[]>('query-named-block-nodes');
    expect(nodes.map((node) => node['node-name'])).toEqual(['disk', 'file']);
    expect(nodes[0]).toMatchObject({ drv: 'raw', ro: false, file: served.path });
    const refused = async (name: string) =>
      (await qmp.refused('blockdev-del', { 'node-name': name })).desc;
    expect(await refused('disk')).toBe('Node disk is in use');
    expect(await refused('file')).toBe('Block device file is in use');
    expect(await refused('nope')).toBe("Failed to find node with node-name='nope'");
  });
});
