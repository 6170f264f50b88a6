// SPDX-License-Identifier: MIT
/** Questions about schema types that validation, introspection and documentation share. */
import type { AnyType, EnumType, JsonValue, Member, ObjectType, StructType } from './types.js';

/** What a lazy reference stands for. */
export function resolve(type: AnyType): Exclude<AnyType, { readonly kind: 'lazy' }> {
  let resolved = type;
  while (resolved.kind === 'lazy') resolved = resolved.get();
  return resolved;
}

const MEMBERS_CACHE = new WeakMap<object, ReadonlyMap<string, Member<AnyType>>>();

/** All members of an object type, those of its bases first, without those of union branches. */
export function membersOf(type: ObjectType): ReadonlyMap<string, Member<AnyType>> {
  const cached = MEMBERS_CACHE.get(type);
  if (cached !== undefined) return cached;
  const members = new Map<string, Member<AnyType>>();
  const base = type.base as StructType | undefined;
  if (base !== undefined) for (const [name, member] of membersOf(base)) members.set(name, member);
  for (const [name, member] of Object.entries(type.members)) {
    if (members.has(name)) throw new Error(`${type.name}: member ${name} is in its base already`);
    members.set(name, member as Member<AnyType>);
  }
  MEMBERS_CACHE.set(type, members);
  return members;
}

/** The enum that a union's discriminator takes its values from. */
export function discriminatorOf(type: Extract<ObjectType, { kind: 'union' }>): EnumType {
  const member = membersOf(type).get(type.discriminator);
  const tag = member && resolve(member.type);
  if (tag?.kind !== 'enum')
    throw new Error(`${type.name}: ${type.discriminator} is no enum member`);
  return tag;
}

/** The JSON type by which introspection and alternates tell values apart. */
export type JsonTypeName =
  | 'string'
  | 'number'
  | 'int'
  | 'boolean'
  | 'null'
  | 'object'
  | 'array'
  | 'value';

const JSON_TYPES: Readonly<Record<string, JsonTypeName>> = {
  str: 'string',
  bool: 'boolean',
  number: 'number',
  null: 'null',
  any: 'value',
};

/** The JSON type of the values of `type`. */
export function jsonTypeOf(type: AnyType): JsonTypeName {
  const resolved = resolve(type);
  switch (resolved.kind) {
    case 'builtin':
      return JSON_TYPES[resolved.name] ?? 'int';
    case 'enum':
      return 'string';
    case 'array':
      return 'array';
    case 'alternate':
      return 'value';
    default:
      return 'object';
  }
}

/** The JSON type of a value; 'number' for every number, whole or not. */
export function jsonTypeOfValue(value: JsonValue): Exclude<JsonTypeName, 'int' | 'value'> {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  switch (typeof value) {
    case 'string':
      return 'string';
    case 'boolean':
      return 'boolean';
    case 'object':
      return 'object';
    default:
      return 'number';
  }
}
