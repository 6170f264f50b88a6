// SPDX-License-Identifier: MIT
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

type Cleanup = () => unknown;

/**
 * Things that a test opened, closed again in the opposite order.
 *
 * Every step runs even when one before it threw; the errors are then thrown together, so that a
 * daemon that would not stop fails its test and still leaves no file behind.
 */
export class Scope {
  readonly #cleanups: Cleanup[] = [];

  defer(cleanup: Cleanup): void {
    this.#cleanups.push(cleanup);
  }

  async close(): Promise<void> {
    const errors: unknown[] = [];
    for (let next = this.#cleanups.pop(); next !== undefined; next = this.#cleanups.pop()) {
      try {
        await next();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length === 1) throw errors[0];
    if (errors.length > 1) throw new AggregateError(errors, 'several clean-up steps failed');
  }

  /** A fresh folder below the system's temporary one, removed when the scope closes. */
  async tempDir(): Promise<string> {
    const path = await mkdtemp(join(tmpdir(), 'diskferry-'));
    // What is being ended may still make or remove files there.
    this.defer(() => rm(path, { recursive: true, force: true, maxRetries: 5 }));
    return path;
  }
}

/** A scope that closes when the running test ends, passed or failed. */
export function testScope(): Scope {
  const scope = new Scope();
  onTestFinished(() => scope.close());
  return scope;
}
