// SPDX-License-Identifier: MIT
import { describe, expect, test } from 'vitest';
import { type JsonLimits, JsonStream, parseJson } from '../../../src/qmp/json-stream.js';

function messages(input: string | Buffer, limits: Partial<JsonLimits> = {}): unknown[] {
  const stream = new JsonStream(limits);
  stream.feed(typeof input === 'string' ? Buffer.from(input) : input);
  return drain(stream);
}

function drain(stream: JsonStream): unknown[] {
  const found: unknown[] = [];
  for (let m = stream.next(); m !== undefined; m = stream.next()) {
    found.push('value' in m ? m.value : m.error);
  }
  return found;
}

describe('values', () => {
  test('are what JSON.parse makes of them', () => {
    const text =
      '{"a": [1, -2, 0, 1.5, -0.25e2, 1E3, true, false, null, "", {}, []], "é€😀": "\\n\\u20ac\\ud83d\\ude00"}';
    expect(messages(text)).toEqual([JSON.parse(text)]);
  });

  test('come out the same when bytes come one by one', () => {
    const text = '{"a": [12, -3.5e1, "x\\"é"], "b": true} [null] "s" 17 {"k": {"l": "m"}}';
    const stream = new JsonStream();
    const found: unknown[] = [];
    for (const byte of Buffer.from(`${text} `)) {
      stream.feed(Buffer.from([byte]));
      found.push(...drain(stream));
    }
    expect(found).toEqual([{ a: [12, -35, 'x"é'], b: true }, [null], 's', 17, { k: { l: 'm' } }]);
  });

  test('that are integers of 64 bits are exact', () => {
    expect(
      messages('[9007199254740991, 9007199254740993, -9223372036854775808, 18446744073709551615]'),
    ).toEqual([
      [9007199254740991, 9007199254740993n, -9223372036854775808n, 18446744073709551615n],
    ]);
    expect(messages('[18446744073709551616]')).toEqual([[2 ** 64]]);
  });

  test('may be quoted with apostrophes', () => {
    expect(messages(`{'a': 'it\\'s "b"'}`)).toEqual([{ a: 'it\'s "b"' }]);
  });

  test('with keys that mean something to JavaScript are plain data', () => {
    const [value] = messages('{"__proto__": {"x": 1}, "constructor": 2}') as [object];
    expect(Object.keys(value)).toEqual(['__proto__', 'constructor']);
    expect(({} as Record<string, unknown>).x).toBeUndefined();
  });
});

describe('errors', () => {
  test.each([
    ['{"a" 1}', 'missing : in object pair'],
    ['{"a": 1 "b": 2}', 'expected separator in dict'],
    ['[1 2]', 'expected separator in list'],
    ['[1, ]', 'expecting value'],
    ['[, 1]', 'expecting value'],
    ['{"a": }', 'expecting value'],
    ['{, "a": 1}', 'expecting value'],
    ['{1: 2}', 'key is not a string in object'],
    ['{"a": 1, "a": 2}', 'duplicate key'],
    ['["\\q"]', 'invalid escape sequence in string'],
    ['["\\ud800"]', '\\ud800 is not a valid Unicode character'],
    ['["\\u12g4"]', '\\u12g4 is not a valid Unicode character'],
    ['[nil]', "invalid keyword 'nil'"],
    ['}', 'expecting value'],
    [',', 'expecting value'],
    ['["\uffff"]', 'invalid UTF-8 sequence in string'],
    ['[1e999]', 'number is out of range'],
    [`[${'9'.repeat(400)}]`, 'number is out of range'],
  ])('%s says %s', (text, why) => {
    expect(messages(text)).toEqual([`JSON parse error, ${why}`]);
  });

  test('of encoding are found', () => {
    expect(messages(Buffer.from([0x22, 0xc3, 0x28, 0x22]))).toEqual([
      'JSON parse error, invalid UTF-8 sequence in string',
    ]);
  });

  test('of the alphabet are told at once, and skipped up to the next structure', () => {
    expect(messages('{"a": #bc, {"b": 1}')).toEqual([
      "JSON parse error, stray '#'",
      'JSON parse error, expecting value',
      { b: 1 },
    ]);
    expect(messages('01 \n{"a": 1}')).toEqual(["JSON parse error, stray '01'", { a: 1 }]);
    expect(messages('"a\u0001b"\n[1]')).toEqual([`JSON parse error, stray '"a\u0001'`, [1]]);
  });

  test('wait for the end of the message', () => {
    expect(messages('{"a" 1, "b": [{"c": 2}]} {"d": 3}')).toEqual([
      'JSON parse error, missing : in object pair',
      { d: 3 },
    ]);
  });

  test('0xFF brings a lost parser back', () => {
    const bytes = Buffer.concat([
      Buffer.from('{"a": ["b'),
      Buffer.from([0xff]),
      Buffer.from('\n[1]'),
    ]);
    expect(messages(bytes).at(-1)).toEqual([1]);
  });
});

describe('limits', () => {
  test('hold for nesting', () => {
    expect(messages('[[[1]]]', { nesting: 3 })).toEqual([[[[1]]]]);
    expect(messages('[[[[', { nesting: 3 })).toEqual(['JSON nesting depth limit exceeded']);
  });

  test('hold for tokens', () => {
    expect(messages('[1,2]', { tokens: 5 })).toEqual([[1, 2]]);
    expect(messages('[1,2,3,', { tokens: 5 })[0]).toBe('JSON token count limit exceeded');
  });

  test('hold for the size of a message and of a token that does not end', () => {
    expect(messages('["abc"]', { message: 7 })).toEqual([['abc']]);
    expect(messages('["abcd"', { message: 6 })[0]).toBe('JSON token size limit exceeded');
    expect(messages(`"${'x'.repeat(100)}`, { message: 50 })).toEqual([
      'JSON token size limit exceeded',
    ]);
  });

  test('are told once and at once, and the rest of the message is skipped', () => {
    const stream = new JsonStream({ tokens: 5 });
    stream.feed(Buffer.from('{"a": [1, '));
    expect(drain(stream)).toEqual(['JSON token count limit exceeded']);
    stream.feed(Buffer.from('2, "}]}", [{}], {"b": [3, '));
    expect(drain(stream)).toEqual([]);
    expect(stream.isInMessage).toBe(true);
    stream.feed(Buffer.from(']}, :, nil], "a": 4} [6]'));
    expect(drain(stream)).toEqual([[6]]);
  });

  test.each<[string, Partial<JsonLimits>, string]>([
    ['[1,2,3]', { tokens: 6 }, 'JSON token count limit exceeded'],
    ['[[[[1],{}]],[1]]', { nesting: 3 }, 'JSON nesting depth limit exceeded'],
    ['["abcdef", "g", ["h"]]', { message: 6 }, 'JSON token size limit exceeded'],
    ['"abcdef"', { message: 6 }, 'JSON token size limit exceeded'],
  ])('of %s are told before the next message comes', (text, limit, error) => {
    expect(messages(`${text} [2]`, limit)).toEqual([error, [2]]);
  });

  test.each([
    ['["', '"]'],
    ['"', '"'],
  ])('skip to the end of a string that is too long: %s', (open, close) => {
    const stream = new JsonStream({ message: 50 });
    const found: unknown[] = [];
    for (const piece of [`${open}a`, 'x'.repeat(60), '1] ,{\\', '" z', `${close} [1]`]) {
      stream.feed(Buffer.from(piece));
      found.push(...drain(stream));
    }
    expect(found).toEqual(['JSON token size limit exceeded', [1]]);
  });

  test('end with 0xFF, too', () => {
    const bytes = Buffer.concat([
      Buffer.from('[1,2,3,4,['),
      Buffer.from([0xff]),
      Buffer.from('\n[1]'),
    ]);
    const found = messages(bytes, { tokens: 5 });
    expect(found).toHaveLength(3);
    expect([found[0], found[2]]).toEqual(['JSON token count limit exceeded', [1]]);
  });

  test('are those that deep but legal messages fit in', () => {
    const text = `${'['.repeat(1024)}${']'.repeat(1024)}`;
    expect(messages(text)).toHaveLength(1);
    expect(messages(`[${text}]`)[0]).toBe('JSON nesting depth limit exceeded');
  });

  test('looks at no more bytes than it may, and goes on there', () => {
    const stream = new JsonStream();
    stream.feed(Buffer.from('{"a": "bc'));
    stream.feed(Buffer.from('de"} [1]'));
    expect(stream.next(5)).toBeUndefined();
    expect(stream.parsedBytes).toBe(5);
    expect(stream.next(7)).toBeUndefined();
    expect(stream.parsedBytes).toBe(12);
    expect(stream.next(7)).toEqual({ value: { a: 'bcde' } });
    expect(stream.hasUnparsed).toBe(true);
    expect(stream.next()).toEqual({ value: [1] });
    expect(stream.hasUnparsed).toBe(false);
  });
});

describe('parseJson', () => {
  test('takes one value', () => {
    expect(parseJson(' {"a": 1} ')).toEqual({ a: 1 });
    expect(parseJson('5')).toBe(5);
  });

  test('refuses half a value, two values and none', () => {
    expect(() => parseJson('{"a":')).toThrow('JSON parse error, premature EOI');
    expect(() => parseJson('{} {}')).toThrow('expecting end of input');
    expect(() => parseJson('{} {')).toThrow('expecting end of input');
    expect(() => parseJson('')).toThrow('Expecting a JSON value');
    expect(() => parseJson('{"a')).toThrow(`JSON parse error, stray '"a`);
  });
});
