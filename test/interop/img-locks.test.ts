// SPDX-License-Identifier: MIT
/** An image that another process uses: qemu-img's words, by which tools know what is the matter. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { diskferry } from '../support/diskferry.js';
import { collect, runPeer, spawnTracked, tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

async function imageInUse(): Promise<string> {
  const scope = testScope();
  const dir = await scope.tempDir();
  const path = join(dir, 'image');
  await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', path, '1M']);
  const user = spawnTracked('qemu-io', [path], { stdio: ['pipe', 'pipe', 'pipe'] });
  scope.defer(() => user.kill());
  const output = collect(user.stdout);
  user.stdin?.write('length\n');
  await waitUntil(() => output.text().includes('MiB'), { what: () => output.text() });
  return path;
}

describe('an image that somebody writes to', () => {
  it.each([
    ['info', []],
    ['check', []],
    ['convert', ['copy']],
    ['resize', ['8M']],
    ['snapshot', ['-c', 'one']],
    ['rebase', ['-u', '-b', '']],
  ])('is refused by img %s in the words of qemu-img', async (command, args) => {
    const path = await imageInUse();
    const [first] = args;
    const options = first?.startsWith('-') === true ? [...args, path] : [path, ...args];
    const theirs = await tryPeer('qemu-img', [command, ...options], { cwd: join(path, '..') });
    const ours = await diskferry(['img', command, ...options], { cwd: join(path, '..') });
    expect(theirs.stderr).toMatch(/Failed to get (shared )?"write" lock/);
    expect(ours.stderr).toBe(theirs.stderr.replace('qemu-img:', 'diskferry:'));
    expect(ours.code).toBe(theirs.code);
  });

  it('is named when it would be overwritten', async () => {
    const path = await imageInUse();
    const { stderr } = await diskferry(['img', 'create', '-f', 'raw', path, '1M']);
    expect(stderr).toBe(
      `diskferry: ${path}: Failed to get "write" lock\nIs another process using the image [${path}]?\n`,
    );
  });
});
