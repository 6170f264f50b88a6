// SPDX-License-Identifier: MIT
import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseKeyval } from '../../../src/daemon/keyval.js';

const plain = (text: string, impliedKey?: string): unknown =>
  JSON.parse(JSON.stringify(parseKeyval(text, impliedKey ? { impliedKey } : {}).tree));

describe('key=value syntax', () => {
  it('makes a tree of dotted keys', () => {
    expect(plain('driver=raw,file.driver=file,file.filename=a.img')).toEqual({
      driver: 'raw',
      file: { driver: 'file', filename: 'a.img' },
    });
  });

  it('makes arrays of indexes given in any order', () => {
    expect(plain('list.1.x=b,list.0.x=a')).toEqual({ list: [{ x: 'a' }, { x: 'b' }] });
  });

  it('takes two commas in a value as one', () => {
    expect(plain('filename=a,,b,,,read-only=on')).toEqual({
      filename: 'a,b,',
      'read-only': 'on',
    } as unknown);
  });

  it('lets the first parameter leave out its key', () => {
    expect(plain('file,filename=x', 'driver')).toEqual({ driver: 'file', filename: 'x' });
  });

  it.each([
    ['filename=x,filename=y', 'filename'],
    ['filename=x,filename=x', 'filename'],
    ['null-co,driver=file', 'driver'],
    ['file.filename=x,a=1,file.filename=y', 'file.filename'],
    ['list.0=x,list.0=y', 'list.0'],
  ])('refuses a key that is given twice by name: %s', (text, key) => {
    const parse = () => parseKeyval(text, { impliedKey: 'driver' });
    expect(parse).toThrow(`Parameter '${key}' is given twice`);
  });

  it('accepts a trailing comma and empty text', () => {
    expect(plain('a=1,')).toEqual({ a: '1' });
    expect(plain('')).toEqual({});
  });

  it('keeps keys such as __proto__ away from prototypes', () => {
    expect(() => parseKeyval('__proto__.x=1')).toThrow("Invalid parameter '__proto__.x'");
    expect(plain('constructor.prototype.x=1')).toEqual({ constructor: { prototype: { x: '1' } } });
    expect(Object.keys(Object.prototype)).toEqual([]);
  });

  it('notices a request for help', () => {
    expect(parseKeyval('throttle-group,help', { impliedKey: 'qom-type' }).help).toBe(true);
    expect(parseKeyval('a=help').help).toBe(false);
  });

  it('either parses any text or refuses it with a BlockError', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'ab.,=01_-?') }), (text) => {
        try {
          parseKeyval(text, { impliedKey: 'k' });
        } catch (error) {
          expect(error).toMatchObject({ name: 'BlockError', code: 'DF_INVALID' });
        }
      }),
    );
  });
});

/** What qemu-storage-daemon says of the same argument, without the place it puts in front. */
function qemuSays(argument: string): string {
  try {
    execFileSync('qemu-storage-daemon', ['--blockdev', argument], { stdio: 'pipe' });
    return '';
  } catch (error) {
    const text = (error as { stderr: Buffer }).stderr.toString().trim();
    return text.slice(text.indexOf(`${argument}: `) + argument.length + 2);
  }
}

describe('errors of the key=value syntax are those of qemu-storage-daemon', () => {
  const cases = [
    'driver=file,filename',
    'a.b=1,a=2',
    'a=2,a.b=1',
    'a.b.c=1,a.b=2',
    'driver=file,filename.0=1,filename.2=3',
    'driver=file,filename.0=1,filename.x=3',
    'a.b.0=1,a.b.x=2',
    '9x=1',
    '=3',
    'a.=1',
    'a..b=1',
    'a.1x=1',
    'a,,b=1',
    'a,,b',
    'a,b',
    `${'a'.repeat(128)}=1`,
    `a.${'b'.repeat(128)}=1`,
    'driver=file,?x=1',
  ];
  it.each(cases)('%s', (argument) => {
    let message = '';
    try {
      parseKeyval(argument, { impliedKey: 'driver' });
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).toBe(qemuSays(argument));
  });
});
