// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { BlockBackend } from '../../../src/block/backend.js';
import { drained } from '../../../src/block/drain.js';
import { openNode } from '../../../src/block/open-node.js';
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from '../../../src/block/permissions.js';
import { memoryGraph } from '../../support/memory-driver.js';

const READ_WRITE = PERM_CONSISTENT_READ | PERM_WRITE;

/** A promise and the function that fulfils it. */
function gate(): { opened: Promise<void>; open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

describe('names', () => {
  it('refuses a node name that starts with a digit, has a space, or is too long', async () => {
    const { add } = memoryGraph();
    await expect(add('0f', 512)).rejects.toThrow("Invalid node-name: '0f'");
    await expect(add('a b', 512)).rejects.toThrow("Invalid node-name: 'a b'");
    await expect(add('x'.repeat(32), 512)).rejects.toThrow('Node name too long');
  });

  it('refuses a name that is taken and keeps the node that has it', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512);
    await expect(add('a', 1024)).rejects.toThrow("Duplicate nodes with node-name='a'");
    expect(graph.get('a')).toBe(node);
  });

  it('frees the name again when opening fails', async () => {
    const { add } = memoryGraph();
    await expect(add('a', 512, { broken: true })).rejects.toThrow('broken');
    expect((await add('a', 512)).size).toBe(512);
  });

  it('names inline children itself', async () => {
    const { graph } = memoryGraph();
    await openNode(
      graph,
      { driver: 'pass', 'node-name': 'top', file: { driver: 'memory', size: 512 } },
      { monitorOwned: true },
    );
    expect(graph.nodes.map(({ name }) => name)).toEqual(['#block000', 'top']);
  });
});

describe('adding and removing', () => {
  it('closes an inline child with its parent', async () => {
    const { graph, driverOf } = memoryGraph();
    const top = await openNode(
      graph,
      { driver: 'pass', 'node-name': 'top', file: { driver: 'memory', size: 512 } },
      { monitorOwned: true },
    );
    const below = top.children.get('file')?.node;
    if (below === undefined) throw new Error('no child');
    const driver = driverOf(below);
    await graph.remove('top');
    expect(driver.closed).toBe(true);
    expect(graph.nodes).toEqual([]);
  });

  it('leaves nothing behind when a parent can not be opened', async () => {
    const { graph } = memoryGraph();
    const bad = {
      driver: 'pass',
      'node-name': 'top',
      file: { driver: 'memory', size: 1, broken: true },
    };
    await expect(openNode(graph, bad)).rejects.toThrow('broken');
    expect(graph.nodes).toEqual([]);
  });

  it('refuses to remove a node that is in use, in the words of QEMU', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512);
    await openNode(
      graph,
      { driver: 'pass', 'node-name': 'top', file: 'a' },
      { monitorOwned: true },
    );
    await expect(graph.remove('a')).rejects.toThrow('Block device a is in use');
    const backend = new BlockBackend("export 'e'");
    await graph.attach(backend, graph.get('top'), { taken: 0, shared: PERM_ALL });
    await expect(graph.remove('top')).rejects.toThrow('Node top is in use');
    await expect(graph.remove('nope')).rejects.toThrow("Failed to find node with node-name='nope'");
    await graph.detach(backend);
    await graph.remove('top');
    expect(graph.nodes).toEqual([node]);
  });

  it('refuses to attach to a node that was closed while the graph was awaited', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const node = await add('a', 512);
    const driver = driverOf(node);
    const backend = new BlockBackend("export 'e'");
    const removed = graph.remove('a');
    const attached = graph.attach(backend, node, { taken: 0, shared: PERM_ALL });
    await expect(attached).rejects.toMatchObject({
      ...{ code: 'DF_NOT_FOUND', message: "Failed to find node with node-name='a'" },
    });
    await removed;
    expect([driver.closed, backend.attached, node.parents.size]).toEqual([true, false, 0]);
    // Another of the name is another node.
    await add('a', 512);
    await expect(graph.attach(backend, node, { taken: 0, shared: PERM_ALL })).rejects.toThrow(
      "node-name='a'",
    );
  });

  it('flushes what was written before it closes', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const node = await add('a', 512);
    const driver = driverOf(node);
    await node.write(0, Buffer.alloc(4));
    await graph.remove('a');
    expect([driver.flushes, driver.closed]).toEqual([1, true]);
  });
});

describe('permissions', () => {
  it('refuses what another parent does not share, naming node, permission and both parents', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512);
    const writer = new BlockBackend("export 'w'");
    await graph.attach(writer, node, { taken: READ_WRITE, shared: PERM_ALL });
    const jealous = new BlockBackend("block job 'j'");
    const attempt = graph.attach(jealous, node, { taken: 0, shared: PERM_CONSISTENT_READ });
    await expect(attempt).rejects.toThrow(
      "Permission conflict on node 'a': permissions 'write' are both required by export 'w' " +
        "(uses node 'a' as 'root' child) and unshared by block job 'j' (uses node 'a' as 'root' child).",
    );
    expect([...node.parents].length).toBe(1);
  });

  it('lets a format keep others from writing and resizing its file', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512);
    await openNode(
      graph,
      { driver: 'format', 'node-name': 'top', file: 'a' },
      { monitorOwned: true },
    );
    const writer = new BlockBackend("export 'w'");
    await expect(
      graph.attach(writer, node, { taken: PERM_WRITE, shared: PERM_ALL }),
    ).rejects.toThrow("permissions 'write' are both required by export 'w'");
    expect(node.taken).toBe(READ_WRITE | PERM_RESIZE);
  });

  it('refuses a writer on a read-only node', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512, { 'read-only': true });
    const writer = new BlockBackend("export 'w'");
    await expect(
      graph.attach(writer, node, { taken: PERM_WRITE, shared: PERM_ALL }),
    ).rejects.toThrow("Block node 'a' is read-only");
  });

  it('passes what a filter has on, and takes it back with the last parent', async () => {
    const { graph, add } = memoryGraph();
    const node = await add('a', 512);
    const top = await openNode(
      graph,
      { driver: 'pass', 'node-name': 't', file: 'a' },
      { monitorOwned: true },
    );
    const writer = new BlockBackend("export 'w'");
    await graph.attach(writer, top, { taken: READ_WRITE, shared: PERM_ALL });
    expect(node.taken).toBe(READ_WRITE);
    await graph.detach(writer);
    expect(node.taken).toBe(0);
  });
});

describe('drain and replaceNode', () => {
  it('waits for what is in flight and holds back what comes', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const node = await add('a', 4096);
    const driver = driverOf(node);
    const backend = new BlockBackend("export 'e'");
    await graph.attach(backend, node, { taken: READ_WRITE, shared: PERM_ALL });
    const slow = gate();
    driver.delay = () => slow.opened;
    const first = backend.write(0, Buffer.alloc(512, 1));
    const events: string[] = [];
    const section = drained([node], () => {
      events.push('drained');
      driver.delay = undefined;
    });
    const second = Promise.resolve(backend.write(512, Buffer.alloc(512, 2))).then(() =>
      events.push('second'),
    );
    await Promise.resolve();
    expect(events).toEqual([]);
    slow.open();
    await Promise.all([first, section, second]);
    expect(events).toEqual(['drained', 'second']);
    expect([driver.data[0], driver.data[512]]).toEqual([1, 2]);
  });

  it('moves users from one node to another under their requests', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const from = await add('from', 4096);
    const to = await add('to', 4096);
    const backend = new BlockBackend("export 'e'");
    await graph.attach(backend, from, { taken: READ_WRITE, shared: PERM_ALL });
    await graph.replaceNode(from, to);
    await backend.write(0, Buffer.alloc(1, 7));
    expect([driverOf(from).data[0], driverOf(to).data[0]]).toEqual([0, 7]);
    expect([from.taken, to.taken]).toEqual([0, READ_WRITE]);
  });

  it('leaves all as it was when the users may not go there', async () => {
    const { graph, driverOf, add } = memoryGraph();
    const from = await add('from', 4096);
    const to = await add('to', 4096, { 'read-only': true });
    const backend = new BlockBackend("export 'e'");
    await graph.attach(backend, from, { taken: READ_WRITE, shared: PERM_ALL });
    await expect(graph.replaceNode(from, to)).rejects.toThrow('read-only');
    await backend.write(0, Buffer.alloc(1, 7));
    expect(driverOf(from).data[0]).toBe(7);
    expect(to.parents.size).toBe(0);
  });

  it('never makes a cycle: a node above stays above', async () => {
    const { graph, add } = memoryGraph();
    const below = await add('below', 512);
    const top = await openNode(
      graph,
      { driver: 'pass', 'node-name': 't', file: 'below' },
      { monitorOwned: true },
    );
    const backend = new BlockBackend("export 'e'");
    await graph.attach(backend, below, { taken: PERM_CONSISTENT_READ, shared: PERM_ALL });
    await graph.replaceNode(below, top);
    expect(backend.root.node).toBe(top);
    expect(top.children.get('file')?.node).toBe(below);
  });
});
