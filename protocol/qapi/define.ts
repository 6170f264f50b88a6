// SPDX-License-Identifier: MIT
/**
 * The words in which the QMP schema is written. A definition is data: from it come the TypeScript
 * types (`Infer`, `Output`), the check of arguments (validate.ts), introspection (schema-info.ts)
 * and the reference. Names are those of the wire.
 *
 *   export const BlockdevOptionsRaw = struct('BlockdevOptionsRaw', {
 *     doc: 'A window of another node.',
 *     base: BlockdevOptionsGenericFormat,
 *     members: { offset: optional(size, 'where the window starts, bytes', { default: '0' }) },
 *   });
 *   type Options = Infer<typeof BlockdevOptionsRaw>;
 */
import type {
  AlternateType,
  AnyType,
  ArrayType,
  BuiltinName,
  BuiltinType,
  CommandDefinition,
  EnumType,
  EventDefinition,
  LazyType,
  Member,
  Members,
  ObjectType,
  StructType,
  UnionType,
} from './types.js';

export type {
  AnyType,
  ArgumentsOf,
  CommandDefinition,
  DataOf,
  EventDefinition,
  Infer,
  JsonObject,
  JsonValue,
  ObjectType,
  Output,
  ResultOf,
} from './types.js';

function builtin<N extends BuiltinName>(name: N): BuiltinType<N> {
  return { kind: 'builtin', name };
}

export const str = builtin('str');
export const bool = builtin('bool');
export const number = builtin('number');
/** Signed integer as a number; refused where its size exceeds 2^53 - 1. */
export const int = builtin('int');
/** Bytes as a number, 0 to 2^53 - 1; a size with suffix on the command line ('64k'). */
export const size = builtin('size');
export const int8 = builtin('int8');
export const int16 = builtin('int16');
export const int32 = builtin('int32');
export const uint8 = builtin('uint8');
export const uint16 = builtin('uint16');
export const uint32 = builtin('uint32');
/** Exact: a bigint where a number could not hold it (`speed: 9223372036853727232`). */
export const int64 = builtin('int64');
/** Exact, from 0 to 2^64 - 1: a bigint where a number could not hold it. */
export const uint64 = builtin('uint64');
export const nullType = builtin('null');
/** Any JSON value, handed on as it came. */
export const anyType = builtin('any');

type MemberExtras = { readonly default?: string; readonly features?: readonly string[] };

/** A member that must be there. */
export function required<const T extends AnyType>(
  type: T,
  doc: string,
  extras: { readonly features?: readonly string[] } = {},
): Member<T, false> {
  return { type, optional: false, doc, features: extras.features ?? [] };
}

/** A member that may be absent; `extras.default` says what that means, unless `doc` does. */
export function optional<const T extends AnyType>(
  type: T,
  doc: string,
  extras: MemberExtras = {},
): Member<T, true> {
  const fallback = extras.default !== undefined ? { default: extras.default } : {};
  return { type, optional: true, doc, features: extras.features ?? [], ...fallback };
}

export function array<const E extends AnyType>(element: E): ArrayType<E> {
  return { kind: 'array', element };
}

/**
 * A set of words. Values are a list, or a table from value to its line of documentation.
 */
export function enumeration<const V extends string>(
  name: string,
  definition: {
    readonly doc: string;
    readonly values: readonly V[] | { readonly [K in V]: string };
    readonly valueFeatures?: { readonly [value: string]: readonly string[] };
    readonly features?: readonly string[];
  },
): EnumType<V> {
  const { values } = definition;
  const listed = Array.isArray(values);
  return {
    kind: 'enum',
    name,
    doc: definition.doc,
    values: (listed ? values : Object.keys(values)) as readonly V[],
    valueDocs: listed ? {} : (values as { readonly [K in V]: string }),
    valueFeatures: definition.valueFeatures ?? {},
    features: definition.features ?? [],
  };
}

/** An object with fixed members, those of `base` first. */
export function struct<
  const M extends Members = Record<never, never>,
  const B extends StructType | undefined = undefined,
>(
  name: string,
  definition: {
    readonly doc: string;
    readonly base?: B;
    readonly members?: M;
    readonly features?: readonly string[];
  },
): StructType<M, B> {
  return {
    kind: 'struct',
    name,
    doc: definition.doc,
    base: definition.base as B,
    members: definition.members ?? ({} as M),
    features: definition.features ?? [],
  };
}

/**
 * A flat union: common members (`base` and `members`), one of which, `discriminator`, is an enum
 * whose value names the struct in `branches` with the rest. Values without a branch add nothing.
 */
export function union<
  const M extends Members = Record<never, never>,
  const B extends StructType | undefined = undefined,
  const D extends string = string,
  const C extends { readonly [value: string]: StructType } = Record<never, never>,
>(
  name: string,
  definition: {
    readonly doc: string;
    readonly base?: B;
    readonly members?: M;
    readonly discriminator: D;
    readonly branches: C;
    readonly features?: readonly string[];
  },
): UnionType<M, B, D, C> {
  return {
    kind: 'union',
    name,
    doc: definition.doc,
    base: definition.base as B,
    members: definition.members ?? ({} as M),
    discriminator: definition.discriminator,
    branches: definition.branches,
    features: definition.features ?? [],
  };
}

/** One of several types, told apart by the JSON type of the value; no two may share one. */
export function alternate<const C extends { readonly [name: string]: AnyType }>(
  name: string,
  definition: { readonly doc: string; readonly branches: C; readonly features?: readonly string[] },
): AlternateType<C> {
  const { doc, branches, features = [] } = definition;
  return { kind: 'alternate', name, doc, branches, features };
}

/**
 * A type that is defined further down, or that contains itself:
 *
 *   interface BlockdevRefBox { readonly type: typeof BlockdevRef }
 *   ... file: required(lazy<BlockdevRefBox>((): AnyType => BlockdevRef), '...')
 *
 * Both the interface and the written return type are needed: they keep inference from going round.
 */
export function lazy<Box extends { readonly type: unknown }>(get: () => AnyType): LazyType<Box> {
  return { kind: 'lazy', get };
}

/** The object type of arguments that are written as members in place. */
type Arguments<A> = A extends { readonly kind: 'struct' | 'union' } ? A : StructType<A, undefined>;

function objectType(value: Members | ObjectType, name: string): ObjectType {
  // A member called "kind" is an object; the tag of a type is a string.
  if (typeof value.kind === 'string') return value as ObjectType;
  return struct(name, { doc: '', members: value as Members });
}

/**
 * Declares a command. `arguments` is a struct or union, or the members themselves; absent: none.
 */
export function defineCommand<
  const A extends Members | ObjectType = Record<never, never>,
  const R extends AnyType | undefined = undefined,
>(definition: {
  readonly name: string;
  readonly doc: string;
  readonly arguments?: A;
  readonly result?: R;
  readonly oob?: boolean;
  readonly features?: readonly string[];
}): CommandDefinition<Arguments<A>, R> {
  const { name, doc, oob = false, features = [] } = definition;
  const type = objectType(definition.arguments ?? {}, `q_obj_${name}-arg`);
  return {
    kind: 'command',
    name,
    doc,
    arguments: type as Arguments<A>,
    result: definition.result as R,
    oob,
    features,
  };
}

/** Declares an event. `data` is a struct or union, or the members themselves; absent: none. */
export function defineEvent<
  const D extends Members | ObjectType = Record<never, never>,
>(definition: {
  readonly name: string;
  readonly doc: string;
  readonly data?: D;
  readonly rateLimitMs?: number;
  readonly rateKey?: string;
  readonly features?: readonly string[];
}): EventDefinition<Arguments<D>> {
  const { name, doc, rateLimitMs, rateKey, features = [] } = definition;
  const type = objectType(definition.data ?? {}, `q_obj_${name}-arg`);
  return {
    kind: 'event',
    name,
    doc,
    data: type as Arguments<D>,
    ...(rateLimitMs !== undefined ? { rateLimitMs } : {}),
    ...(rateKey !== undefined ? { rateKey } : {}),
    features,
  };
}
