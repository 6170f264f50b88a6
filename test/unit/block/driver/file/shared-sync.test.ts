// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { SharedSync } from '../../../../../src/block/driver/file/shared-sync.js';

/** Syncs that end when the test says so. */
class Syncs {
  readonly begun: { resolve: () => void; reject: (error: Error) => void }[] = [];
  readonly shared = new SharedSync(
    () => new Promise<void>((resolve, reject) => this.begun.push({ resolve, reject })),
  );
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('SharedSync', () => {
  it('does not let a sync that began before a request serve it', async () => {
    const { begun, shared } = new Syncs();
    const first = shared.run();
    let served = false;
    const second = shared.run().then(() => {
      served = true;
    });
    begun[0]?.resolve();
    await first;
    await turn();
    expect(served).toBe(false);
    expect(begun).toHaveLength(2);
    begun[1]?.resolve();
    await second;
  });

  it('serves all who came meanwhile by one sync', async () => {
    const { begun, shared } = new Syncs();
    const all = [shared.run(), shared.run(), shared.run(), shared.run()];
    begun[0]?.resolve();
    await all[0];
    await turn();
    // This one comes when the second has begun.
    all.push(shared.run());
    begun[1]?.resolve();
    await Promise.all(all.slice(0, 4));
    await turn();
    expect(begun).toHaveLength(3);
    begun[2]?.resolve();
    await Promise.all(all);
  });

  it('begins at once again when nothing is under way', async () => {
    const { begun, shared } = new Syncs();
    for (const count of [1, 2, 3]) {
      const run = shared.run();
      expect(begun).toHaveLength(count);
      begun[count - 1]?.resolve();
      await run;
    }
  });

  it('tells a failure to all who shared the sync and to nobody else', async () => {
    const { begun, shared } = new Syncs();
    const failed = shared.run();
    const others = [shared.run(), shared.run()];
    begun[0]?.reject(new Error('the disk is gone'));
    await expect(failed).rejects.toThrow('the disk is gone');
    await turn();
    expect(begun).toHaveLength(2);
    begun[1]?.reject(new Error('still gone'));
    for (const other of others) await expect(other).rejects.toThrow('still gone');
    const later = shared.run();
    begun[2]?.resolve();
    await later;
  });
});
