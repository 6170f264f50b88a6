// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { type ExportOptions, ExportRegistry } from '../../../../src/nbd/server/export.js';
import { contextsOf, selectContexts } from '../../../../src/nbd/server/meta-contexts.js';
import {
  blockSizes,
  REPLY_EXTENDED,
  REPLY_SIMPLE,
  REPLY_STRUCTURED,
  transmissionFlags,
} from '../../../../src/nbd/server/session.js';
import { FLAG } from '../../../support/nbd-wire.js';
import { MemoryBackend, type MemoryBackendOptions } from './memory-backend.js';

function options(id: string, more: Partial<ExportOptions> = {}): ExportOptions {
  const backend = new MemoryBackend({ size: 4096 });
  return { id, name: id, nodeName: `node-${id}`, backend, writable: true, ...more };
}

const client = () => {
  const reasons: string[] = [];
  return { reasons, drop: (reason: string) => void reasons.push(reason) };
};

describe('ExportRegistry', () => {
  it('finds exports by id and by name', () => {
    const registry = new ExportRegistry();
    const added = registry.add(options('a', { name: 'disk' }));
    expect(registry.find('disk')).toBe(added);
    expect(registry.get('a')).toBe(added);
    expect(registry.find('a')).toBeUndefined();
  });

  it('refuses an id or a name that is taken', () => {
    const registry = new ExportRegistry();
    registry.add(options('a', { name: 'disk' }));
    expect(() => registry.add(options('a', { name: 'other' }))).toThrow(
      "Block export id 'a' is already in use",
    );
    expect(() => registry.add(options('b', { name: 'disk' }))).toThrow(
      "NBD server already has export named 'disk'",
    );
  });

  it('refuses texts of more than 4096 bytes and with NUL', () => {
    const registry = new ExportRegistry();
    expect(() => registry.add(options('a', { name: 'n'.repeat(4097) }))).toThrow('too long');
    expect(() => registry.add(options('a', { description: 'ä'.repeat(2049) }))).toThrow('too long');
    expect(() => registry.add(options('a', { name: 'a\0b' }))).toThrow('NUL');
    registry.add(options('a', { name: 'n'.repeat(4096) }));
  });

  it('refuses to export a read-only node writable', () => {
    const backend = new MemoryBackend({ size: 1, readOnly: true });
    expect(() => new ExportRegistry().add(options('a', { backend }))).toThrow('is read-only');
  });

  it('removes safely only what nobody uses', async () => {
    const registry = new ExportRegistry();
    const added = registry.add(options('a'));
    const user = client();
    added.enter(user);
    expect(() => registry.remove('a', 'safe')).toThrow("export 'a' still in use");
    added.leave(user);
    await registry.remove('a', 'safe').closed;
    expect(registry.all()).toEqual([]);
  });

  it('drops clients in mode hard, and is gone when they are', async () => {
    const closed: string[] = [];
    const registry = new ExportRegistry();
    const added = registry.add(options('a', { onClosed: ({ id }) => closed.push(id) }));
    const user = client();
    added.enter(user);
    registry.remove('a', 'hard');
    expect(user.reasons).toHaveLength(1);
    expect(closed).toEqual([]);
    added.leave(user);
    expect(closed).toEqual(['a']);
    await added.closed;
  });

  it('keeps a hidden export for who has it, and frees its name at once', () => {
    const registry = new ExportRegistry();
    const added = registry.add(options('a', { name: 'disk' }));
    const user = client();
    added.enter(user);
    registry.remove('a', 'hide');
    expect(user.reasons).toEqual([]);
    expect(registry.find('disk')).toBeUndefined();
    expect(registry.offered()).toEqual([]);
    expect(registry.all()).toEqual([added]);
    registry.add(options('b', { name: 'disk' }));
    expect(() => registry.remove('a', 'safe')).toThrow("export 'a' still in use");
    expect(() => registry.remove('a', 'hide')).toThrow("Export 'a' is already hidden");
    registry.remove('a', 'hard');
    expect(() => registry.remove('a', 'safe')).toThrow("Export 'a' is already shutting down");
    expect(user.reasons).toHaveLength(1);
    added.leave(user);
    expect(registry.has('a')).toBe(false);
  });

  it('finds by name what is to be removed: the one on offer, then those that are hidden', () => {
    const registry = new ExportRegistry();
    const [first, second] = ['a', 'b'].map((id) => {
      const added = registry.add(options(id, { name: 'disk' }));
      added.enter(client());
      registry.remove(id, 'hide');
      return added;
    });
    const offered = registry.add(options('c', { name: 'disk' }));
    expect(registry.findToRemove('disk')).toBe(offered);
    registry.remove('c', 'safe');
    expect(registry.findToRemove('disk')).toBe(first);
    expect(second?.hidden).toBe(true);
    expect(registry.findToRemove('disk2')).toBeUndefined();
  });

  it('refuses to remove what is not there', () => {
    expect(() => new ExportRegistry().remove('a')).toThrow("Export 'a' is not found");
  });
});

describe('what an export offers', () => {
  const exported = (
    more: Partial<ExportOptions> = {},
    backend: Partial<MemoryBackendOptions> = {},
  ) =>
    new ExportRegistry().add(
      options('e', { backend: new MemoryBackend({ size: 4096, ...backend }), ...more }),
    );

  it('announces multi-conn for writable exports, and write commands only for them', () => {
    const writable = transmissionFlags(exported(), REPLY_SIMPLE);
    expect(writable & FLAG.CAN_MULTI_CONN).toBe(FLAG.CAN_MULTI_CONN);
    expect(writable & FLAG.SEND_TRIM).toBe(FLAG.SEND_TRIM);
    const readOnly = transmissionFlags(exported({ writable: false }), REPLY_SIMPLE);
    expect(readOnly & FLAG.READ_ONLY).toBe(FLAG.READ_ONLY);
    expect(readOnly & (FLAG.SEND_TRIM | FLAG.SEND_WRITE_ZEROES | FLAG.SEND_FAST_ZERO)).toBe(0);
  });

  it('announces DF with structured replies only', () => {
    expect(transmissionFlags(exported(), REPLY_SIMPLE) & FLAG.SEND_DF).toBe(0);
    expect(transmissionFlags(exported(), REPLY_STRUCTURED) & FLAG.SEND_DF).toBe(FLAG.SEND_DF);
    const wide = transmissionFlags(exported(), REPLY_EXTENDED);
    expect(wide & FLAG.BLOCK_STATUS_PAYLOAD).toBe(FLAG.BLOCK_STATUS_PAYLOAD);
  });

  it('takes block sizes from the node, legal ones whatever it says', () => {
    const sizes = (limits: object, size = 1 << 20) => blockSizes(exported({}, { limits, size }));
    expect(sizes({})).toEqual({ minimum: 1, preferred: 4096, maximum: 32 << 20 });
    expect(sizes({ requestAlignment: 65536 })).toMatchObject({ minimum: 65536, preferred: 65536 });
    expect(sizes({ requestAlignment: 1 << 20 })).toMatchObject({ minimum: 65536 });
    expect(sizes({ requestAlignment: 65536 }, 66048)).toMatchObject({ minimum: 512 });
    expect(sizes({ optimalTransfer: 100_000 })).toMatchObject({ preferred: 65536 });
    expect(sizes({ optimalTransfer: 1 << 30 })).toMatchObject({ preferred: 32 << 20 });
  });

  it('lists contexts by wildcard and selects them by name only', () => {
    const bitmap = { nextExtent: () => ({ length: 1, dirty: false }) };
    const bitmaps = new Map([
      ['b0', bitmap],
      ['b1', bitmap],
    ]);
    const all = contextsOf(exported({ allocationDepth: true, bitmaps }));
    const names = (queries: string[], wildcards: boolean) =>
      selectContexts(all, queries, { wildcards }).map(({ name }) => name);
    expect(all.map(({ name }) => name)).toEqual([
      'base:allocation',
      'qemu:allocation-depth',
      'qemu:dirty-bitmap:b0',
      'qemu:dirty-bitmap:b1',
    ]);
    expect(names(['base:'], true)).toEqual(['base:allocation']);
    expect(names(['qemu:dirty-bitmap:'], true)).toHaveLength(2);
    expect(names(['base:', 'qemu:'], false)).toEqual([]);
    expect(names(['qemu:dirty-bitmap:b1', 'x-other:y', 'nocolon'], false)).toEqual([
      'qemu:dirty-bitmap:b1',
    ]);
    expect(new Set(all.map(({ id }) => id)).size).toBe(all.length);
  });
});
