// SPDX-License-Identifier: MIT
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readinessReport, startInBackground } from '../../../src/daemon/daemonize.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'diskferry-daemonize-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Runs a script in place of the daemon; `fd` is the number of its reporting descriptor. */
function start(script: string, inheritFds: number[] = []) {
  const args = [
    '-e',
    `const fs = require('fs'), fd = +process.env.DISKFERRYD_REPORT_FD; ${script}`,
  ];
  return startInBackground({ execPath: process.execPath, args, env: process.env, inheritFds });
}

describe('start in the background', () => {
  it('succeeds when the daemon reports ready, while it goes on running', async () => {
    const result = await start(
      'fs.writeSync(fd, "\\0"); fs.closeSync(fd); setInterval(() => 0, 99)',
    );
    if (!result.ready) throw new Error(result.reason);
    expect(process.kill(result.pid, 0)).toBe(true);
    process.kill(result.pid, 'SIGKILL');
  });

  it('hands on the reason for which the daemon could not be set up', async () => {
    expect(await start('fs.writeSync(fd, "--export x: no such node\\n")')).toEqual({
      ...{ ready: false, reason: '--export x: no such node' },
    });
  });

  it('tells how a daemon ended that said nothing', async () => {
    expect(await start('process.exit(3)')).toEqual({
      ...{ ready: false, reason: 'the daemon ended with status 3 before it was ready' },
    });
    expect(await start('process.kill(process.pid, "SIGKILL")')).toEqual({
      ...{ ready: false, reason: 'the daemon ended by signal SIGKILL before it was ready' },
    });
  });

  it('fails with the reason when the program cannot be started', async () => {
    const options = { execPath: join(folder, 'nothing'), args: [], env: {}, inheritFds: [] };
    await expect(startInBackground(options)).rejects.toThrow('cannot start the daemon');
  });

  it('passes descriptors on under their numbers', async () => {
    const path = join(folder, 'passed');
    const fd = openSync(path, 'w');
    try {
      expect(fd).toBeGreaterThan(2);
      const result = await start(`fs.writeSync(${fd}, 'through'); fs.writeSync(fd, '\\0')`, [fd]);
      expect(result.ready).toBe(true);
      expect(readFileSync(path, 'utf8')).toBe('through');
    } finally {
      closeSync(fd);
    }
  });

  it('gives the daemon a session of its own and no terminal', async () => {
    const stat = `fs.readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ')`;
    const script = `fs.writeSync(fd, ${stat}[3] + ' ' + process.pid + ' ' + fs.readlinkSync('/proc/self/fd/2'))`;
    const result = await start(script);
    const [session, pid, stderr] = result.ready ? [] : result.reason.split(' ');
    expect([session, stderr]).toEqual([pid, '/dev/null']);
  });
});

describe("the daemon's report", () => {
  it('is absent in the foreground', () => {
    expect(readinessReport({})).toBeUndefined();
  });

  it('is one zero byte for ready, once, and the variable is gone', () => {
    const path = join(folder, 'report');
    const env: Record<string, string | undefined> = {
      DISKFERRYD_REPORT_FD: String(openSync(path, 'w')),
    };
    const report = readinessReport(env);
    report?.ready();
    report?.failed('too late');
    expect([...readFileSync(path)]).toEqual([0]);
    expect('DISKFERRYD_REPORT_FD' in env).toBe(false);
  });

  it('is the reason for a failure', () => {
    const path = join(folder, 'report');
    readinessReport({ DISKFERRYD_REPORT_FD: String(openSync(path, 'w')) })?.failed('no');
    expect(readFileSync(path, 'utf8')).toBe('no');
  });

  it('refuses a variable that holds no descriptor', () => {
    expect(() => readinessReport({ DISKFERRYD_REPORT_FD: '-1' })).toThrow('holds no descriptor');
  });
});
