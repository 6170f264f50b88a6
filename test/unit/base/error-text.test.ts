// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { errnoText, errorText, requestErrorText } from '../../../src/base/error-text.js';
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

test("a failed request's error begins with the words of its errno", () => {
  const refused = new BlockError('DF_NO_SPACE', 'the NBD server failed it', { errno: 'ENOSPC' });
  expect(requestErrorText(refused)).toBe('No space left on device: the NBD server failed it');
  const lost = new BlockError('DF_DISCONNECTED', 'lost the server', { errno: 'ECONNRESET' });
  expect(requestErrorText(lost)).toBe('Input/output error: lost the server');
  expect(requestErrorText(new BlockError('DF_IO', 'broken'))).toBe('Input/output error: broken');
});

test('the words of an errno are not said twice', () => {
  const cause = Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', syscall: 'write' });
  expect(requestErrorText(cause)).toBe('No space left on device');
  const wrapped = fromSystemError(cause, "Writing 'a'");
  expect(requestErrorText(wrapped)).toBe("No space left on device: Writing 'a'");
});

test('an error that stands for no errno says what it says', () => {
  const error = new BlockError('DF_CANCELLED', 'Operation canceled');
  expect(requestErrorText(error)).toBe('Operation canceled');
  expect(requestErrorText(new Error('a bug'))).toBe('a bug');
});
