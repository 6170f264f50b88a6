// SPDX-License-Identifier: MIT
/** What the words of the diskferry command mean, before anything is connected. */
import { describe, expect, it } from 'vitest';
import { parseSpeed } from '../../../src/cli/migrate.js';
import { parseMonitor, parsePairs } from '../../../src/cli/qmp.js';
import { writeJson } from '../../../src/qmp/json-writer.js';

describe('a monitor', () => {
  it('is a path, unless it ends in a port and has no slash', () => {
    expect(parseMonitor('/run/a.qmp')).toEqual({ path: '/run/a.qmp' });
    expect(parseMonitor('./a:4444')).toEqual({ path: './a:4444' });
    expect(parseMonitor('qmp.sock')).toEqual({ path: 'qmp.sock' });
    expect(parseMonitor('host-a:4444')).toEqual({ host: 'host-a', port: 4444 });
    expect(parseMonitor('[::1]:4444')).toEqual({ host: '::1', port: 4444 });
    expect(parseMonitor(':4444')).toEqual({ host: '127.0.0.1', port: 4444 });
  });

  it('has a port from 1 to 65535', () => {
    expect(() => parseMonitor('host-a:0')).toThrow("'host-a:0': a port is 1 to 65535");
    expect(() => parseMonitor('host-a:65536')).toThrow('a port is 1 to 65535');
  });
});

describe('arguments of a QMP command', () => {
  it('are JSON where they look like it, and text otherwise', () => {
    expect(
      parsePairs([
        'id=e0',
        'size=1048576',
        'offset=-1',
        'writable=true',
        'backing=null',
        'addr={"type":"unix"}',
        'bitmaps=["a"]',
        'port="10809"',
        'name=a=b',
        'description=',
        'serial=007',
      ]),
    ).toEqual({
      id: 'e0',
      size: 1048576,
      offset: -1,
      writable: true,
      backing: null,
      addr: { type: 'unix' },
      bitmaps: ['a'],
      port: '10809',
      name: 'a=b',
      description: '',
      serial: '007',
    });
  });

  it('keep integers of 64 bits exact', () => {
    expect(writeJson(parsePairs(['speed=9223372036853727232']))).toBe(
      '{"speed": 9223372036853727232}',
    );
  });

  it('are refused by name when they are no pair, broken JSON, or doubled', () => {
    expect(() => parsePairs(['name'])).toThrow("'name' is not KEY=VALUE");
    expect(() => parsePairs(['=x'])).toThrow("'=x' is not KEY=VALUE");
    expect(() => parsePairs(['addr={"type"'])).toThrow('addr: \'{"type"\' begins like JSON');
    expect(() => parsePairs(['a=1', 'a=2'])).toThrow("'a' is given twice");
  });

  it('may have any name, also one that objects inherit', () => {
    expect(Object.keys(parsePairs(['__proto__=1', 'constructor=2']))).toEqual([
      '__proto__',
      'constructor',
    ]);
  });
});

describe('a speed', () => {
  it('is a number of bytes with a power of 1024 as suffix', () => {
    expect(['0', '512', '4k', '10M', '2G', '1T'].map(parseSpeed)).toEqual([
      0,
      512,
      4096,
      10 * 2 ** 20,
      2 * 2 ** 30,
      2 ** 40,
    ]);
    expect(parseSpeed(undefined)).toBeUndefined();
  });

  it('is refused when it is anything else, or too large to be exact', () => {
    for (const text of ['', '-1', '1.5M', '10m', '10 M', 'fast']) {
      expect(() => parseSpeed(text)).toThrow(`--speed '${text}'`);
    }
    expect(() => parseSpeed('9999999T')).toThrow('is too large');
  });
});
