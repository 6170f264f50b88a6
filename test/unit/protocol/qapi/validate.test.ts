// SPDX-License-Identifier: MIT
import { describe, expect, test } from 'vitest';
import {
  type AnyType,
  alternate,
  anyType,
  array,
  bool,
  enumeration,
  int,
  int8,
  int64,
  lazy,
  nullType,
  number,
  optional,
  required,
  size,
  str,
  struct,
  uint16,
  uint64,
  union,
} from '../../../../protocol/qapi/define.js';
import { QapiInputError, validate } from '../../../../protocol/qapi/validate.js';

const Driver = enumeration('Driver', { doc: '', values: ['raw', 'file', 'null'] });
interface RefBox {
  readonly type: typeof Ref;
}
const Raw = struct('Raw', {
  doc: '',
  members: {
    file: required(
      lazy<RefBox>((): AnyType => Ref),
      '',
    ),
    size: optional(size, ''),
  },
});
const File = struct('File', {
  doc: '',
  members: { filename: required(str, ''), mode: optional(int, '') },
});
const Options = union('Options', {
  doc: '',
  members: { driver: required(Driver, ''), 'read-only': optional(bool, '') },
  discriminator: 'driver',
  branches: { raw: Raw, file: File },
});
const Ref = alternate('Ref', { doc: '', branches: { definition: Options, reference: str } });

describe('objects', () => {
  test('keep what the schema knows, in a copy', () => {
    const given = { driver: 'raw', file: { driver: 'file', filename: 'a' }, size: 5 };
    const checked = validate(Options, given);
    expect(checked).toEqual(given);
    expect(checked).not.toBe(given);
  });

  test.each<[unknown, string]>([
    [{ driver: 'raw' }, "Parameter 'file' is missing"],
    [{ file: 'a' }, "Parameter 'driver' is missing"],
    [{ driver: 'raw', file: { driver: 'file' } }, "Parameter 'file.filename' is missing"],
    [
      { driver: 'file', filenam: 'a' },
      "Parameter 'filename' is missing (parameter 'filenam' is unexpected)",
    ],
    [
      { drivr: 'file', filename: 'a', mode: 1, a: 1, b: 1, c: 1, d: 1 },
      "Parameter 'driver' is missing (parameters 'drivr', 'a', 'b' are unexpected)",
    ],
    [{ driver: 'null', filename: 'a' }, "Parameter 'filename' is unexpected"],
    [
      { driver: 'raw', file: { driver: 'file', filename: 'a', x: 1 } },
      "Parameter 'file.x' is unexpected",
    ],
    [{ driver: 'file', filename: 3 }, "Invalid parameter type for 'filename', expected: string"],
    [
      { driver: 'null', 'read-only': 'on' },
      "Invalid parameter type for 'read-only', expected: boolean",
    ],
    [{ driver: 'nul' }, "Parameter 'driver' does not accept value 'nul'"],
    [{ driver: 'raw', file: 7 }, "Invalid parameter type for 'file', expected: Ref"],
    [
      { driver: 'file', filename: 'a', mode: 1.5 },
      "Invalid parameter type for 'mode', expected: integer",
    ],
    [{ driver: 'raw', file: 'a', size: -1 }, "Parameter 'size' expects uint64"],
    [{ driver: 'raw', file: 'a', size: 2n ** 53n }, "Parameter 'size' expects a size below 2^53"],
    [JSON.parse('{"driver": "null", "__proto__": {}}'), "Parameter '__proto__' is unexpected"],
    [{ driver: 'constructor' }, "Parameter 'driver' does not accept value 'constructor'"],
  ])('%o: %s', (value, text) => {
    expect(() => validate(Options, value as never)).toThrow(new QapiInputError(text));
  });

  test('must be objects', () => {
    for (const value of [null, 1, 'x', [], true]) {
      expect(() => validate(File, value)).toThrow(/expected: object/);
    }
  });
});

describe('lists', () => {
  const Holder = struct('Holder', { doc: '', members: { items: required(array(File), '') } });
  test('name the place of what is wrong', () => {
    const items = [{ filename: 'a' }, { filename: null }];
    expect(() => validate(Holder, { items })).toThrow(
      "Invalid parameter type for 'items[1].filename', expected: string",
    );
    expect(() => validate(Holder, { items: {} })).toThrow(
      "Invalid parameter type for 'items', expected: array",
    );
  });
});

describe('integers', () => {
  test('of 64 bits are exact, and numbers wherever they fit', () => {
    expect(validate(int64, 9223372036853727232n)).toBe(9223372036853727232n);
    expect(validate(int64, 5n)).toBe(5);
    expect(validate(uint64, 2n ** 64n - 1n)).toBe(2n ** 64n - 1n);
    expect(() => validate(int64, 2n ** 63n)).toThrow(/expected: integer/);
    expect(() => validate(uint64, -1)).toThrow(/expects uint64/);
    expect(() => validate(int64, 2 ** 60)).toThrow(/expected: integer/);
  });

  test('of fewer bits keep to their range', () => {
    const Small = struct('Small', {
      doc: '',
      members: { a: optional(int8, ''), b: optional(uint16, '') },
    });
    expect(validate(Small, { a: -128, b: 65535 })).toEqual({ a: -128, b: 65535 });
    expect(() => validate(Small, { a: 128 })).toThrow("Parameter 'a' expects int8_t");
    expect(() => validate(Small, { b: 65536 })).toThrow("Parameter 'b' expects uint16_t");
  });
});

test('other built-in types take what they should', () => {
  expect(validate(number, 1.5)).toBe(1.5);
  expect(validate(number, 2n ** 60n)).toBe(2 ** 60);
  expect(validate(nullType, null)).toBeNull();
  expect(() => validate(nullType, 0)).toThrow(/expected: null/);
  expect(validate(anyType, [{ a: 1 }])).toEqual([{ a: 1 }]);
});

describe('values from a command line', () => {
  const Mixed = struct('Mixed', {
    doc: '',
    members: {
      bool: optional(bool, ''),
      int: optional(int, ''),
      size: optional(size, ''),
      number: optional(number, ''),
      str: optional(str, ''),
      list: optional(array(File), ''),
    },
  });
  const keyval = { keyval: true };

  test('are converted', () => {
    expect(validate(Mixed, { bool: 'on', int: '0x10', size: '1.5k', str: '5' }, keyval)).toEqual({
      bool: true,
      int: 16,
      size: 1536,
      str: '5',
    });
    expect(validate(Mixed, { bool: 'no', int: '-010', size: '2T', number: '0.5' }, keyval)).toEqual(
      {
        bool: false,
        int: -8,
        size: 2 * 2 ** 40,
        number: 0.5,
      },
    );
    const nested = { driver: 'raw', file: { driver: 'file', filename: 'a' }, size: '64k' };
    expect(validate(Options, nested, keyval)).toMatchObject({ size: 65536 });
  });

  test.each<[unknown, string]>([
    [{ bool: 'maybe' }, "Parameter 'bool' expects 'on' or 'off'"],
    [{ int: '5x' }, "Parameter 'int' expects integer"],
    [{ int: '' }, "Parameter 'int' expects integer"],
    [{ size: '5q' }, "Parameter 'size' expects size"],
    [{ size: '-5' }, "Parameter 'size' expects size"],
    [{ size: '1.5' }, "Parameter 'size' expects size"],
    [{ number: 'x' }, "Invalid parameter type for 'number', expected: number"],
    [{ str: { a: '1' } }, "Parameters 'str.*' are unexpected"],
    [{ list: [{ filename: 'a' }, {}] }, "Parameter 'list.1.filename' is missing"],
  ])('%o: %s', (value, text) => {
    expect(() => validate(Mixed, value as never, keyval)).toThrow(new QapiInputError(text));
  });
});
