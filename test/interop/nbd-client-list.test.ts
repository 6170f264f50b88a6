// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { MIB } from '../support/images.js';
import { runPeer } from '../support/peers.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

test('nbd-client lists the exports over TCP', async () => {
  const disk = await serveImage(testScope(), { size: MIB, tcp: true });
  const { stdout } = await runPeer('nbd-client', ['-l', '127.0.0.1', String(disk.port)]);
  expect(stdout).toContain('Negotiation: ..');
  expect(stdout.split('\n')).toContain('disk');
});

test('nbd-client lists the exports over a UNIX socket', async () => {
  const disk = await serveImage(testScope(), { size: MIB });
  const { stdout } = await runPeer('nbd-client', ['-l', '-unix', disk.socketPath]);
  expect(stdout.split('\n')).toContain('disk');
});
