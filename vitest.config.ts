import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Longer than the waits inside tests, a minute: those say what they have waited for.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // The default, one second, is less than a busy machine may let a process wait.
    expect: { poll: { timeout: 60_000, interval: 10 } },
    pool: 'forks',
    // Most tests wait for other programs; vitest's own choice is one less than there are cores.
    maxWorkers: Math.max(2, availableParallelism()),
  },
});
