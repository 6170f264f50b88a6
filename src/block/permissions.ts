// SPDX-License-Identifier: MIT
/** What a parent does to a child, and what it lets the child's other parents do. @see qapi BlockPermission */

export const PERM_CONSISTENT_READ = 1;
export const PERM_WRITE = 2;
export const PERM_WRITE_UNCHANGED = 4;
export const PERM_RESIZE = 8;
export const PERM_ALL = 15;

/** Permissions that an edge takes: a set of PERM_* bits. */
export type PermissionMask = number;
/** Permissions that an edge lets others take. */
export type ShareMask = number;

export interface Permissions {
  readonly taken: PermissionMask;
  readonly shared: ShareMask;
}

/** Bit and QMP name; order as QEMU lists them. */
export const PERMISSION_NAMES = [
  [PERM_CONSISTENT_READ, 'consistent-read'],
  [PERM_WRITE, 'write'],
  [PERM_WRITE_UNCHANGED, 'write-unchanged'],
  [PERM_RESIZE, 'resize'],
] as const;
export type PermissionName = (typeof PERMISSION_NAMES)[number][1];

/** QMP names of the bits that are set. */
export function permissionNames(mask: PermissionMask): PermissionName[] {
  return PERMISSION_NAMES.filter(([bit]) => (mask & bit) !== 0).map(([, name]) => name);
}

/** "consistent read, resize": as QEMU writes a set in an error's text, without hyphens. */
export function permissionText(mask: PermissionMask): string {
  return permissionNames(mask)
    .map((name) => name.replace('-', ' '))
    .join(', ');
}

/** A filter does to its child what its parents do to it, and shares what they share. */
export function filterPermissions(parents: Permissions): Permissions {
  return { taken: parents.taken, shared: parents.shared };
}

/**
 * A format keeps metadata in its file: it writes there whenever the image is writable, and nobody
 * else may change what it has read.
 */
export function formatPermissions(parents: Permissions, writable: boolean): Permissions {
  const own = PERM_CONSISTENT_READ | (writable ? PERM_WRITE | PERM_RESIZE : 0);
  return {
    taken: parents.taken | own,
    shared: parents.shared & ~(PERM_WRITE | PERM_RESIZE),
  };
}

/**
 * A backing node is only read. Who can bear that the data on top changes can bear it below too;
 * else nobody may write there.
 */
export function backingPermissions(parents: Permissions): Permissions {
  const changing = parents.shared & PERM_WRITE ? PERM_WRITE | PERM_RESIZE : 0;
  return {
    taken: parents.taken & PERM_CONSISTENT_READ,
    shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED | changing,
  };
}
