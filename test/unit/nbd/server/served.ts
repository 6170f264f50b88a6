// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect } from 'vitest';
import { BufferPool } from '../../../../src/base/buffer-pool.js';
import type { ExportOptions, NbdExport } from '../../../../src/nbd/server/export.js';
import { NbdServer, type NbdServerOptions } from '../../../../src/nbd/server/server.js';
import { OPT, REP } from '../../../support/nbd-wire.js';
import { RawNbd } from '../../../support/raw-nbd.js';
import { type Scope, testScope } from '../../../support/temp.js';
import { MemoryBackend, type MemoryBackendOptions } from './memory-backend.js';

export const MIB = 1024 * 1024;

export interface Served {
  readonly scope: Scope;
  readonly server: NbdServer;
  readonly backend: MemoryBackend;
  readonly exported: NbdExport;
  /** Path of the UNIX socket. */
  readonly socket: string;
}

/**
 * A server of the running test with the export `disk` on a memory backend. When the test ends the
 * server is stopped, and nothing of its buffer pool may be left taken.
 */
export async function serve(
  backendOptions: Partial<MemoryBackendOptions> = {},
  exportOptions: Partial<ExportOptions> = {},
  serverOptions: NbdServerOptions = {},
): Promise<Served> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const backend = new MemoryBackend({ size: 4 * MIB, ...backendOptions });
  const pool = new BufferPool();
  const server = new NbdServer({ pool, ...serverOptions });
  scope.defer(async () => {
    await server.stop(0);
    expect(pool.taken).toBe(0);
  });
  const exported = server.addExport({
    id: 'exp0',
    name: 'disk',
    nodeName: 'node0',
    backend,
    writable: true,
    ...exportOptions,
  });
  const socket = join(dir, 'nbd.sock');
  await server.listen({ type: 'unix', path: socket });
  return { scope, server, backend, exported, socket };
}

/** A client of the running test in the transmission phase. */
export async function client(
  { scope, socket }: Served,
  options: { structured?: boolean; extended?: boolean; contexts?: readonly string[] } = {},
): Promise<RawNbd> {
  const raw = await RawNbd.handshake(scope, socket);
  if (options.structured) expect(await raw.optionType(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
  if (options.extended) expect(await raw.optionType(OPT.EXTENDED_HEADERS)).toBe(REP.ACK);
  if (options.contexts !== undefined) await raw.setMetaContexts('disk', options.contexts);
  await raw.go('disk');
  return raw;
}

/** Bytes that differ from place to place. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; at++) bytes[at] = (at * 31 + (at >> 8) * 7 + seed) & 0xff;
  return bytes;
}
