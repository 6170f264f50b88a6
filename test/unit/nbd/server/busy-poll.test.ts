// SPDX-License-Identifier: MIT
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
import {
  NBD_POLL_AFTER,
  NBD_POLL_PAID,
  NBD_POLL_STEADY_MS,
  NBD_POLL_WINDOW_MS,
} from '../../../../src/base/limits.js';
import { BusyPoll } from '../../../../src/nbd/server/busy-poll.js';

/** Time that passes only when the test says so. */
function setUp(windowMs?: number) {
  const time = { ms: 1 };
  const nowMs = () => time.ms;
  const poll = new BusyPoll(windowMs === undefined ? { nowMs } : { nowMs, windowMs });
  onTestFinished(() => poll.stop());
  const touch = (times: number) => {
    for (let count = 0; count < times; count++) {
      time.ms += 0.02;
      poll.touch();
    }
  };
  return { time, poll, touch };
}

describe('BusyPoll', () => {
  it('keeps the loop awake only once requests come steadily', () => {
    const { time, poll, touch } = setUp();
    touch(NBD_POLL_AFTER);
    expect(poll.polling).toBe(false);
    time.ms += NBD_POLL_STEADY_MS + 1;
    touch(NBD_POLL_AFTER);
    expect(poll.polling).toBe(false);
    touch(1);
    expect(poll.polling).toBe(true);
  });

  it('gives up by itself when nothing comes, and is slower to begin again', async () => {
    const { time, poll, touch } = setUp();
    touch(NBD_POLL_AFTER + 1);
    await turn();
    await turn();
    expect(poll.polling).toBe(true);
    time.ms += NBD_POLL_WINDOW_MS + 1;
    await turn();
    await turn();
    expect(poll.polling).toBe(false);
    touch(NBD_POLL_AFTER + 1);
    expect(poll.polling).toBe(false);
    touch(NBD_POLL_AFTER);
    expect(poll.polling).toBe(true);
  });

  it('begins again as soon as before when it had served enough', async () => {
    const { time, poll, touch } = setUp();
    touch(NBD_POLL_AFTER + 1 + NBD_POLL_PAID);
    expect(poll.polling).toBe(true);
    time.ms += NBD_POLL_WINDOW_MS + 1;
    await turn();
    await turn();
    expect(poll.polling).toBe(false);
    touch(NBD_POLL_AFTER + 1);
    expect(poll.polling).toBe(true);
  });

  it('never begins with a window of zero, or after its end', () => {
    const off = setUp(0);
    off.touch(1000);
    expect(off.poll.polling).toBe(false);
    const stopped = setUp();
    stopped.poll.stop();
    stopped.touch(1000);
    expect(stopped.poll.polling).toBe(false);
  });
});
