// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { OptionStream } from '../../../../src/nbd/client/option-stream.js';
import type { Transport } from '../../../../src/nbd/client/transport.js';

test('the shortest time from an option to the first bytes of its answer is the round trip', () => {
  let now = 1_000;
  const transport: Transport = {
    sink: undefined,
    takesSources: false,
    write() {},
    end() {},
    destroy() {},
  };
  const stream = new OptionStream(transport, () => now);
  const arrive = (): void => {
    stream.receiveBuffer();
    stream.received(1);
  };
  arrive(); // the greeting, which nobody asked for
  expect(stream.roundTripMs).toBeUndefined();
  for (const [answered, shortest] of [
    [50, 50],
    [41, 41],
    [44, 41],
  ] as const) {
    stream.sendOption(8, Buffer.alloc(0));
    now += answered;
    arrive();
    now += 7; // the rest of a long answer
    arrive();
    expect(stream.roundTripMs).toBe(shortest);
  }
});
