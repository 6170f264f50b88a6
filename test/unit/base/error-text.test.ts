// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { errnoText, errorText } from '../../../src/base/error-text.js';
import { BlockError, fromSystemError } from '../../../src/base/errors.js';

test('errors say why in the words of the C library', () => {
  const cause = Object.assign(new Error('ENOENT: no such file'), {
    code: 'ENOENT',
    syscall: 'open',
  });
  const error = fromSystemError(cause, "Could not open 'a'");
  expect(errorText(error)).toBe("Could not open 'a': No such file or directory");
  expect(
    errorText(
      new BlockError(
        'DF_IO',
        'x: Input/output error',
        {},
        { cause: new Error('input/output error') },
      ),
    ),
  ).toBe('x: Input/output error');
  expect(errnoText('EIO')).toBe('Input/output error');
  expect(errnoText('ENOSPC')).toBe('No space left on device');
  expect(errnoText('EADDRINUSE')).toBe('Address already in use');
});
