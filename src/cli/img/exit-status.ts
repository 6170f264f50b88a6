// SPDX-License-Identifier: MIT
import { toError } from '../../base/errors.js';

/** The same error, with which the command ends with another exit status than 1. */
export function withExitStatus(error: unknown, exitStatus: number): Error {
  return Object.assign(toError(error), { exitStatus });
}
