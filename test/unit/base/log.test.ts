// SPDX-License-Identifier: MIT
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.js';
import {
  createLog,
  type LogLevel,
  rootLog,
  setRootLog,
  subjectLog,
} from '../../../src/base/log.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'diskferry-log-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

async function lines(
  format: 'json' | 'text',
  level: LogLevel,
  write: (log: Awaited<ReturnType<typeof createLog>>) => void,
): Promise<string[]> {
  const path = join(folder, 'log');
  const fd = openSync(path, 'w');
  const log = await createLog({ fd, format, level });
  write(log);
  await log.flush();
  closeSync(fd);
  return readFileSync(path, 'utf8').trimEnd().split('\n');
}

describe('log', () => {
  it('writes one JSON object a line, with event, subject and error', async () => {
    const [line = ''] = await lines('json', 'info', ({ logger }) => {
      const error = new BlockError('DF_IO', 'read failed', { offset: 4096 });
      subjectLog({ connection: 7, export: 'disk' }, logger).warn(
        { event: 'nbd.request', error },
        'bad',
      );
    });
    expect(JSON.parse(line)).toMatchObject({
      ...{ level: 40, event: 'nbd.request', connection: 7, export: 'disk', msg: 'bad' },
      error: { message: 'read failed', code: 'DF_IO', context: { offset: 4096 } },
    });
  });

  it('writes text that begins with time, level and event', async () => {
    const [line] = await lines('text', 'info', ({ logger }) => {
      logger.info({ event: 'nbd.connect', peer: '::1' }, 'client connected');
    });
    expect(line).toMatch(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: nbd\.connect: client connected .*"::1"/);
  });

  it('leaves out what is below its level', async () => {
    const [line] = await lines('json', 'error', ({ logger }) => logger.warn({ event: 'x' }, 'y'));
    expect(line).toBe('');
  });

  it('shows the stack of an error that nobody expected only', async () => {
    const gone = Object.assign(new Error('connect ECONNREFUSED'), {
      ...{ code: 'ECONNREFUSED', syscall: 'connect' },
    });
    const written = await lines('json', 'info', ({ logger }) => {
      logger.warn({ event: 'x', error: new BlockError('DF_IO', 'lost', {}, { cause: gone }) }, '');
      logger.warn({ event: 'x', error: gone }, '');
      logger.warn({ event: 'x', error: new TypeError('a bug') }, '');
    });
    const errors = written.map((line) => JSON.parse(line).error);
    expect(errors).toMatchObject([
      { type: 'BlockError', message: 'lost: Connection refused', code: 'DF_IO' },
      { message: 'Connection refused', code: 'ECONNREFUSED' },
      { type: 'TypeError', message: 'a bug', stack: expect.stringContaining('log.test.ts') },
    ]);
    expect(errors.map((error) => 'stack' in error)).toEqual([false, false, true]);
  });

  it.each(['json', 'text'] as const)('held back keeps all but warnings: %s', async (format) => {
    const path = join(folder, 'log');
    const fd = openSync(path, 'w');
    const log = await createLog({ fd, format, level: 'info', held: true });
    const told = async () => {
      await log.flush();
      return [...readFileSync(path, 'utf8').matchAll(/(one|two|three|four)/g)].map(
        ([word]) => word,
      );
    };
    log.logger.info({ event: 'x' }, 'one');
    subjectLog({ node: 'n' }, log.logger).error({ event: 'x' }, 'two');
    log.logger.info({ event: 'x' }, 'three');
    expect(await told()).toEqual(['two']);
    log.release();
    log.logger.info({ event: 'x' }, 'four');
    expect(await told()).toEqual(['two', 'one', 'three', 'four']);
    closeSync(fd);
  });

  it('is silent in this process until it is set', async () => {
    const before = rootLog();
    expect(before.isLevelEnabled('fatal')).toBe(false);
    expect(before.child({ node: 'n' }).isLevelEnabled('fatal')).toBe(false);
    const { logger } = await createLog({ fd: 2, format: 'json', level: 'fatal' });
    setRootLog(logger);
    expect(rootLog()).toBe(logger);
    setRootLog(before);
  });
});
