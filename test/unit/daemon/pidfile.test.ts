// SPDX-License-Identifier: MIT
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createPidFile } from '../../../src/daemon/pidfile.js';
import { tryLockFile } from '../../../src/sys/file-lock.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'diskferry-pid-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const create = (path: string) => createPidFile({ path, pid: 4711, tryLock: tryLockFile });

const refusal = (errno: string) =>
  expect.objectContaining({ message: 'cannot create PID file', context: { errno } });

describe('PID file', () => {
  it('holds the process ID and a line feed, and is removed at the end', () => {
    const path = join(folder, 'pid');
    const file = create(path);
    expect(readFileSync(path, 'utf8')).toBe('4711\n');
    file.remove();
    file.remove();
    expect(existsSync(path)).toBe(false);
  });

  it('takes over a file that nobody has locked', () => {
    const path = join(folder, 'pid');
    writeFileSync(path, '99999999999\n');
    const file = create(path);
    expect(readFileSync(path, 'utf8')).toBe('4711\n');
    file.remove();
  });

  it('refuses what is not a regular file, and leaves it alone', () => {
    const path = join(folder, 'pid');
    symlinkSync('/dev/null', path);
    expect(() => create(path)).toThrow(`cannot create PID file: '${path}' is not a regular file`);
    expect(lstatSync(path).isSymbolicLink()).toBe(true);
  });

  it('refuses a file that another owner has locked, and leaves it alone', () => {
    const path = join(folder, 'pid');
    const file = create(path);
    expect(() => create(path)).toThrow('cannot create PID file: another process has it locked');
    expect(readFileSync(path, 'utf8')).toBe('4711\n');
    file.remove();
  });

  it('names the reason when there is no such folder', () => {
    expect(() => create(join(folder, 'no', 'pid'))).toThrow(refusal('ENOENT'));
    mkdirSync(join(folder, 'dir'));
    expect(() => create(join(folder, 'dir'))).toThrow(refusal('EISDIR'));
  });

  it('excludes a qemu-storage-daemon, and is excluded by one', async () => {
    const path = join(folder, 'pid');
    const ours = create(path);
    const refused = spawn('qemu-storage-daemon', ['--pidfile', path], { stdio: 'pipe' });
    let said = '';
    refused.stderr.on('data', (chunk) => {
      said += String(chunk);
    });
    const [status] = await once(refused, 'close');
    expect([status, said]).toEqual([1, expect.stringContaining('Cannot lock pid file')]);
    ours.remove();

    const socket = join(folder, 'qmp');
    const chardev = `socket,id=c,path=${socket},server=on,wait=off`;
    const args = ['--chardev', chardev, '--monitor', 'c', '--pidfile', path];
    const peer = spawn('qemu-storage-daemon', args, { stdio: 'inherit' });
    try {
      while (!existsSync(path) || readFileSync(path, 'utf8') === '') {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      expect(() => create(path)).toThrow('another process has it locked');
    } finally {
      peer.kill();
      await once(peer, 'exit');
    }
  });
});
