// SPDX-License-Identifier: MIT
/** Objects that nodes refer to, as QEMU's object model shows them: throttle groups and secrets. */
import { required, struct } from '../../../protocol/qapi/define.js';
import * as qapi from '../../../protocol/qapi/qom.js';
import type { ArgumentsOf, JsonValue } from '../../../protocol/qapi/types.js';
import { validate } from '../../../protocol/qapi/validate.js';
import { BlockError } from '../../base/errors.js';
import { isIdentifier } from '../../base/identifier.js';
import type { Secrets } from '../../block/crypto/secrets.js';
import { LIMIT_NAMES } from '../../block/throttle/throttle-config.js';
import {
  getThrottleProperty,
  setThrottleProperty,
  type ThrottleGroups,
} from '../../block/throttle/throttle-groups.js';
import type { CommandRegistry } from '../registry.js';

/** Where objects are, by kind; ids are unique over all of them. */
export interface ObjectStores {
  readonly throttleGroups: ThrottleGroups;
  readonly secrets: Secrets;
}

interface Property {
  readonly name: string;
  readonly type: string;
}

type ObjectType = ArgumentsOf<typeof qapi.OBJECT_ADD>['qom-type'];

const TYPE_PROPERTY: Property = { name: 'type', type: 'string' };
const PROPERTIES: Readonly<Record<ObjectType, readonly Property[]>> = {
  'throttle-group': [
    TYPE_PROPERTY,
    { name: 'limits', type: 'ThrottleLimits' },
    ...LIMIT_NAMES.map((name) => ({ name: `x-${name}`, type: 'int' })),
  ],
  secret: [
    TYPE_PROPERTY,
    { name: 'iv', type: 'string' },
    { name: 'keyid', type: 'string' },
    { name: 'loaded', type: 'bool' },
    { name: 'format', type: 'QCryptoSecretFormat' },
    { name: 'file', type: 'string' },
    { name: 'data', type: 'string' },
  ],
};

/** The value of that property, wrapped so that errors name it: 'limits.iops-total'. */
const LIMITS_VALUE = struct('LimitsValue', {
  doc: 'A new value of the property.',
  members: { limits: required(qapi.ThrottleLimits, 'the limits') },
});

/** Kinds of objects, with what they are special cases of. */
const TYPES = [
  { name: 'object', abstract: true },
  { name: 'container', parent: 'object' },
  { name: 'secret_common', parent: 'object', abstract: true },
  { name: 'secret', parent: 'secret_common' },
  { name: 'throttle-group', parent: 'object' },
] as const;

export function registerQom(registry: CommandRegistry, stores: ObjectStores): void {
  registry.register(qapi.OBJECT_ADD, (options) => addObject(stores, options));
  registry.register(qapi.OBJECT_DEL, ({ id }) => removeObject(stores, id));
  registry.register(qapi.QOM_LIST, ({ path }) => listObject(stores, path));
  registry.register(qapi.QOM_GET, ({ path, property }) => getProperty(stores, path, property));
  registry.register(qapi.QOM_SET, ({ path, property, value }) =>
    setProperty(stores, path, property, value),
  );
  registry.register(qapi.QOM_LIST_TYPES, ({ implements: base, abstract = false }) =>
    TYPES.filter((type) => abstract || !('abstract' in type)).filter(
      (type) => base === undefined || isA(type.name, base),
    ),
  );
}

/** What `object-add` and `--object` do. @throws BlockError DF_EXISTS, DF_INVALID, DF_NOT_FOUND */
export async function addObject(
  stores: ObjectStores,
  options: ArgumentsOf<typeof qapi.OBJECT_ADD>,
): Promise<void> {
  checkObjectId(options.id);
  if (typeOf(stores, options.id) !== undefined) throw duplicate(options.id);
  if (options['qom-type'] === 'secret') {
    const secret = await stores.secrets.load(options);
    // Another monitor may have been quicker while a file was read.
    if (typeOf(stores, options.id) !== undefined) throw duplicate(options.id);
    stores.secrets.add(options.id, secret);
    return;
  }
  const { 'qom-type': _type, id, ...properties } = options;
  stores.throttleGroups.add(id, properties);
}

function removeObject(stores: ObjectStores, id: string): void {
  if (!stores.secrets.remove(id)) stores.throttleGroups.remove(id);
}

function isA(name: string, base: string): boolean {
  if (name === base) return true;
  const type = TYPES.find((candidate) => candidate.name === name);
  return type !== undefined && 'parent' in type && isA(type.parent, base);
}

function checkObjectId(id: string): void {
  if (isIdentifier(id)) return;
  throw new BlockError('DF_INVALID', "Parameter 'id' expects an identifier");
}

function duplicate(id: string): BlockError {
  const message = `attempt to add duplicate property '${id}' to object (type 'container')`;
  return new BlockError('DF_EXISTS', message);
}

function typeOf({ throttleGroups, secrets }: ObjectStores, id: string): ObjectType | undefined {
  if (secrets.has(id)) return 'secret';
  return throttleGroups.find(id) === undefined ? undefined : 'throttle-group';
}

type Found =
  | { readonly type: ObjectType; readonly id: string }
  | { readonly type: 'container'; readonly id: 'root' | 'objects' };

/** @throws BlockError DF_NODE_NOT_FOUND (DeviceNotFound), as QEMU has it */
function find(stores: ObjectStores, path: string): Found {
  if (path === '/') return { type: 'container', id: 'root' };
  if (path === '/objects' || path === 'objects') return { type: 'container', id: 'objects' };
  const id = path.startsWith('/objects/') ? path.slice('/objects/'.length) : path;
  const type = typeOf(stores, id);
  if (type === undefined) throw new BlockError('DF_NODE_NOT_FOUND', `Device '${path}' not found`);
  return { type, id };
}

function listObject(stores: ObjectStores, path: string): Property[] {
  const found = find(stores, path);
  if (found.type !== 'container') return [...PROPERTIES[found.type]];
  if (found.id === 'root') {
    return [TYPE_PROPERTY, { name: 'objects', type: 'child<container>' }];
  }
  const groups = stores.throttleGroups.all.map(({ name }) => name);
  return [
    TYPE_PROPERTY,
    ...stores.secrets.ids.map((name) => ({ name, type: 'child<secret>' })),
    ...groups.map((name) => ({ name, type: 'child<throttle-group>' })),
  ];
}

function getProperty(stores: ObjectStores, path: string, property: string): JsonValue {
  const { type, id } = find(stores, path);
  if (property === 'type') return type;
  const value = type === 'secret' ? secretProperty(stores, id, property) : undefined;
  if (value !== undefined) return value;
  const group = type === 'throttle-group' ? stores.throttleGroups.find(id) : undefined;
  const limit = group === undefined ? undefined : getThrottleProperty(group, property);
  if (limit === undefined) throw noProperty(type, property);
  return limit as JsonValue;
}

/** All but the secret itself, which QEMU does tell. */
function secretProperty(stores: ObjectStores, id: string, property: string): JsonValue | undefined {
  if (property === 'loaded') return true;
  if (property === 'data') {
    throw new BlockError('DF_ACCESS', "Property 'secret.data' is not readable");
  }
  const description: Readonly<Record<string, JsonValue>> = { ...stores.secrets.describe(id) };
  return Object.hasOwn(description, property) ? description[property] : undefined;
}

function setProperty(stores: ObjectStores, path: string, property: string, value: JsonValue): void {
  const { type, id } = find(stores, path);
  if (type === 'secret' && PROPERTIES.secret.some(({ name }) => name === property)) {
    throw new BlockError('DF_INVALID', `Property 'secret.${property}' is not writable`);
  }
  const group = type === 'throttle-group' ? stores.throttleGroups.find(id) : undefined;
  if (group === undefined || getThrottleProperty(group, property) === undefined) {
    throw noProperty(type, property);
  }
  const limits = property === 'limits' ? validate(LIMITS_VALUE, { limits: value }).limits : {};
  setThrottleProperty(group, property, limits);
}

function noProperty(type: string, property: string): BlockError {
  return new BlockError('DF_NOT_FOUND', `Property '${type}.${property}' not found`);
}
