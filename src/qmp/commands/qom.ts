// SPDX-License-Identifier: MIT
/** Objects that nodes refer to, as QEMU's object model shows them. Throttle groups are the only kind. */
import * as qapi from '../../../protocol/qapi/qom.js';
import type { ArgumentsOf, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import { LIMIT_NAMES } from '../../block/throttle/throttle-config.js';
import type { ThrottleGroup } from '../../block/throttle/throttle-group.js';
import {
  getThrottleProperty,
  setThrottleProperty,
  type ThrottleGroups,
} from '../../block/throttle/throttle-groups.js';
import type { CommandRegistry } from '../registry.js';

interface Property {
  readonly name: string;
  readonly type: string;
}

const TYPE_PROPERTY: Property = { name: 'type', type: 'string' };
const GROUP_PROPERTIES: readonly Property[] = [
  TYPE_PROPERTY,
  { name: 'limits', type: 'ThrottleLimits' },
  ...LIMIT_NAMES.map((name) => ({ name: `x-${name}`, type: 'int' })),
];

/** Kinds of objects, with what they are special cases of. */
const TYPES = [
  { name: 'object', abstract: true },
  { name: 'container', parent: 'object' },
  { name: 'throttle-group', parent: 'object' },
] as const;

export function registerQom(registry: CommandRegistry, groups: ThrottleGroups): void {
  registry.register(qapi.OBJECT_ADD, (options) => addObject(groups, options));
  registry.register(qapi.OBJECT_DEL, ({ id }) => groups.remove(id));
  registry.register(qapi.QOM_LIST, ({ path }) => listObject(groups, path));
  registry.register(qapi.QOM_GET, ({ path, property }) => getProperty(groups, path, property));
  registry.register(qapi.QOM_SET, ({ path, property, value }) =>
    setProperty(groups, path, property, value),
  );
  registry.register(qapi.QOM_LIST_TYPES, ({ implements: base, abstract = false }) =>
    TYPES.filter((type) => abstract || !('abstract' in type)).filter(
      (type) => base === undefined || type.name === base || isA(type, base),
    ),
  );
}

/** What `object-add` and `--object` do. @throws BlockError DF_EXISTS, DF_INVALID */
export function addObject(
  groups: ThrottleGroups,
  options: ArgumentsOf<typeof qapi.OBJECT_ADD>,
): void {
  checkObjectId(options.id);
  if (groups.find(options.id) !== undefined) {
    throw new BlockError(
      'DF_EXISTS',
      `attempt to add duplicate property '${options.id}' to object (type 'container')`,
    );
  }
  const { 'qom-type': _type, id, ...properties } = options;
  groups.add(id, properties);
}

const isA = (type: (typeof TYPES)[number], base: string): boolean =>
  'parent' in type && type.parent === base;

function checkObjectId(id: string): void {
  if (/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) return;
  throw new BlockError('DF_INVALID', "Parameter 'id' expects an identifier");
}

type Found = { readonly group: ThrottleGroup } | { readonly container: 'root' | 'objects' };

/** @throws BlockError DF_NODE_NOT_FOUND (DeviceNotFound), as QEMU has it */
function find(groups: ThrottleGroups, path: string): Found {
  if (path === '/') return { container: 'root' };
  if (path === '/objects' || path === 'objects') return { container: 'objects' };
  const id = path.startsWith('/objects/') ? path.slice('/objects/'.length) : path;
  const group = groups.find(id);
  if (group === undefined) throw new BlockError('DF_NODE_NOT_FOUND', `Device '${path}' not found`);
  return { group };
}

function listObject(groups: ThrottleGroups, path: string): Property[] {
  const found = find(groups, path);
  if ('group' in found) return [...GROUP_PROPERTIES];
  if (found.container === 'root') {
    return [TYPE_PROPERTY, { name: 'objects', type: 'child<container>' }];
  }
  const children = groups.all.map(({ name }) => ({ name, type: 'child<throttle-group>' }));
  return [TYPE_PROPERTY, ...children];
}

function getProperty(groups: ThrottleGroups, path: string, property: string): JsonValue {
  const found = find(groups, path);
  const type = 'group' in found ? 'throttle-group' : 'container';
  if (property === 'type') return type;
  const value = 'group' in found ? getThrottleProperty(found.group, property) : undefined;
  if (value === undefined) throw noProperty(type, property);
  return value as JsonValue;
}

function setProperty(
  groups: ThrottleGroups,
  path: string,
  property: string,
  value: JsonValue,
): void {
  const found = find(groups, path);
  if (!('group' in found)) throw noProperty('container', property);
  if (getThrottleProperty(found.group, property) === undefined) {
    throw noProperty('throttle-group', property);
  }
  const limits = property === 'limits' ? validate(qapi.ThrottleLimits, value) : {};
  setThrottleProperty(found.group, property, limits);
}

function noProperty(type: string, property: string): BlockError {
  return new BlockError('DF_NOT_FOUND', `Property '${type}.${property}' not found`);
}
