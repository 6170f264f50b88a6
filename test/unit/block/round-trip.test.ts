// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { rawDriver } from '../../../src/block/driver/raw.js';
import { openNode } from '../../../src/block/open-node.js';
import { roundTripMs } from '../../../src/block/round-trip.js';
import { memoryGraph } from '../../support/memory-driver.js';

it('is as far away as the farthest node below', async () => {
  const { graph, driverOf, add } = memoryGraph();
  graph.drivers.register(rawDriver);
  const far = await add('far', 4096);
  const above = await openNode(graph, { driver: 'raw', file: 'far' });
  expect(roundTripMs(above)).toBe(0);
  Object.assign(driverOf(far), { roundTripMs: 40 });
  expect(roundTripMs(above)).toBe(40);
  expect(roundTripMs(far)).toBe(40);
});
