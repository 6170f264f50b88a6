// SPDX-License-Identifier: MIT
/** SIGUSR1 opens Node's debugger to everybody on the machine, unless a program prevents that. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startDaemon, waitUntil } from '../support/daemon.js';
import { startDiskferry } from '../support/diskferry.js';
import { MIB, makeImage } from '../support/images.js';
import { collect } from '../support/peers.js';
import { testScope } from '../support/temp.js';

describe('SIGUSR1', () => {
  it('opens no debugger in diskferryd, which goes on', async () => {
    const scope = testScope();
    const daemon = await startDaemon(scope, ['--log-level', 'debug']);
    process.kill(daemon.pid, 'SIGUSR1');
    await waitUntil(() => daemon.log.includes('SIGUSR1'), { what: () => `a word:\n${daemon.log}` });
    const qmp = await daemon.qmp(scope);
    expect(await qmp.execute('query-named-block-nodes')).toEqual([]);
    expect(await daemon.tcpPorts()).toEqual([]);
    expect(daemon.log).not.toContain('Debugger');
  });

  it.each([
    { options: [], out: /^$/, error: /^ {4}\(\d+\.\d\d\/100%\)\n/ },
    { options: ['-p'], out: /^( {4}\(\d+\.\d\d\/100%\)\r){2,}$/, error: /^$/ },
  ])('makes img convert $options tell how far it is, as qemu-img', async (expected) => {
    const scope = testScope();
    const dir = await scope.tempDir();
    const path = join(dir, 'image');
    await makeImage(path, { size: 64 * MIB, data: [{ offset: 0, length: 64 * MIB }] });
    const copy = join(dir, 'copy');
    const slow = ['-r', '20M', ...expected.options];
    const child = startDiskferry(['img', 'convert', ...slow, path, copy]);
    scope.defer(() => child.kill('SIGKILL'));
    const [out, error] = [collect(child.stdout), collect(child.stderr)];
    const said = (): string => out.text() + error.text();
    // Then it is at work: while Node starts, a signal would find no listener.
    await waitUntil(() => existsSync(copy), { what: () => `the copy: ${said()}` });
    await waitUntil(
      () => {
        if (error.text() === '') child.kill('SIGUSR1');
        return out.text().split('%').length > 5 || error.text() !== '';
      },
      { what: () => `more than ${said()}` },
    );
    expect(out.text()).toMatch(expected.out);
    expect(error.text()).toMatch(expected.error);
  });
});
