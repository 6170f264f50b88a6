// SPDX-License-Identifier: MIT
import { describe, expect, expectTypeOf, it } from 'vitest';
import { BlockdevOptions } from '../../../protocol/qapi/block-core-options.js';
import { BLOCKDEV_MIRROR } from '../../../protocol/qapi/block-job.js';
import type { ArgumentsOf, Infer } from '../../../protocol/qapi/define.js';
import { validate } from '../../../protocol/qapi/validate.js';

describe('types derived from the block schema', () => {
  it('follow nested definitions and narrow by driver', () => {
    const options: Infer<typeof BlockdevOptions> = validate(BlockdevOptions, {
      driver: 'raw',
      'node-name': 'top',
      file: { driver: 'file', filename: 'disk.img', cache: { direct: true } },
    });
    if (options.driver !== 'raw') throw new Error('not narrowed');
    expectTypeOf(options.offset).toEqualTypeOf<number | undefined>();
    const { file } = options;
    if (typeof file === 'string' || file.driver !== 'file') throw new Error('not narrowed');
    expectTypeOf(file.filename).toEqualTypeOf<string>();
    expect(file.cache?.direct).toBe(true);
  });

  it('keep the largest speed exact', () => {
    const given = { device: 'd', target: 't', sync: 'full', speed: 9223372036853727232n };
    const checked = validate(BLOCKDEV_MIRROR.arguments, given);
    expectTypeOf(checked).toEqualTypeOf<ArgumentsOf<typeof BLOCKDEV_MIRROR>>();
    expect(checked.speed).toBe(9223372036853727232n);
  });

  it('refuse drivers and options that there are not', () => {
    const refuse = (value: Parameters<typeof validate>[1]) => () =>
      validate(BlockdevOptions, value);
    expect(refuse({ driver: 'vmdk', file: 'x' })).toThrow(
      "Parameter 'driver' does not accept value 'vmdk'",
    );
    expect(refuse({ driver: 'file', filename: 'x', 'pr-manager': 'y' })).toThrow(
      "Parameter 'pr-manager' is unexpected",
    );
    expect(refuse({ driver: 'file', filename: 'x', aio: 'native' })).toThrow(
      "Parameter 'aio' does not accept value 'native'",
    );
    expect(refuse({ driver: 'raw', file: null })).toThrow("Invalid parameter type for 'file'");
  });
});
