// SPDX-License-Identifier: MIT

const IDENTIFIER = /^[A-Za-z][A-Za-z0-9._-]*$/;

/** True for what may be the id of a job, an export or an object, or a node's name: QEMU's rule for ids. */
export function isIdentifier(text: string): boolean {
  return IDENTIFIER.test(text);
}
