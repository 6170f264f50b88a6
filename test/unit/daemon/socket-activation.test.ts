// SPDX-License-Identifier: MIT
import { describe, expect, it } from 'vitest';
import { takeActivationSockets } from '../../../src/daemon/socket-activation.js';

describe('sockets from a service manager', () => {
  it('start at descriptor 3 and have the names that the unit gives', () => {
    const env = { LISTEN_PID: '42', LISTEN_FDS: '3', LISTEN_FDNAMES: 'nbd::qmp', OTHER: 'x' };
    expect(takeActivationSockets(env, 42)).toEqual([
      { fd: 3, name: 'nbd' },
      { fd: 4 },
      { fd: 5, name: 'qmp' },
    ]);
    expect(env).toEqual({ OTHER: 'x' });
  });

  it('are none when the variables are absent or meant for another process', () => {
    expect(takeActivationSockets({}, 42)).toEqual([]);
    expect(takeActivationSockets({ LISTEN_PID: '43', LISTEN_FDS: '1' }, 42)).toEqual([]);
  });

  it.each(['-1', 'x', '99999999', ''])('refuses LISTEN_FDS=%s', (count) => {
    const env = { LISTEN_PID: '42', LISTEN_FDS: count };
    expect(() => takeActivationSockets(env, 42)).toThrow(`LISTEN_FDS='${count}'`);
  });
});
