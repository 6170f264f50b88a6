// SPDX-License-Identifier: MIT
/** The model of the QMP schema, and the TypeScript types that follow from it. Pure types. */

/** What JSON can say, with integers beyond 2^53 as bigint. */
export type JsonValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly JsonValue[]
  | JsonObject;
export type JsonObject = { readonly [key: string]: JsonValue };

/**
 * Built-in types by name, with the TypeScript type of a value. `int` and `size` are refused past
 * 2^53 - 1, so that offsets and lengths are plain numbers behind the border; `int64` and `uint64`
 * travel exactly and are a bigint only where a number could not hold them. `int8` ... `uint32` are numbers.
 * On the wire (and to introspection) all of them are "int".
 */
export type BuiltinValues = {
  readonly str: string;
  readonly bool: boolean;
  readonly number: number;
  readonly int: number;
  readonly size: number;
  readonly int8: number;
  readonly int16: number;
  readonly int32: number;
  readonly uint8: number;
  readonly uint16: number;
  readonly uint32: number;
  readonly int64: number | bigint;
  readonly uint64: number | bigint;
  readonly null: null;
  readonly any: JsonValue;
};
export type BuiltinName = keyof BuiltinValues;

export interface BuiltinType<N extends BuiltinName = BuiltinName> {
  readonly kind: 'builtin';
  readonly name: N;
}

export interface EnumType<V extends string = string> {
  readonly kind: 'enum';
  readonly name: string;
  readonly doc: string;
  readonly values: readonly V[];
  readonly valueDocs: { readonly [value: string]: string };
  /** Features of single values: `{ old: ['deprecated'] }`. */
  readonly valueFeatures: { readonly [value: string]: readonly string[] };
  readonly features: readonly string[];
}

export interface ArrayType<E = unknown> {
  readonly kind: 'array';
  readonly element: E;
}

/** One member of an object: its type, whether it may be absent, one line of text. */
export interface Member<T = unknown, O extends boolean = boolean> {
  readonly type: T;
  readonly optional: O;
  readonly doc: string;
  /** What absence means, as text for the reference. */
  readonly default?: string;
  readonly features: readonly string[];
}
export type Members = { readonly [name: string]: Member };

export interface StructType<M = Members, B = unknown> {
  readonly kind: 'struct';
  readonly name: string;
  readonly doc: string;
  readonly base: B;
  readonly members: M;
  readonly features: readonly string[];
}

/** An object whose member `discriminator` (an enum) says which further members there are. */
export interface UnionType<M = Members, B = unknown, D extends string = string, C = Branches> {
  readonly kind: 'union';
  readonly name: string;
  readonly doc: string;
  readonly base: B;
  readonly members: M;
  readonly discriminator: D;
  readonly branches: C;
  readonly features: readonly string[];
}
export type Branches = { readonly [value: string]: StructType };

/** A value that is one of several types, told apart by its JSON type. */
export interface AlternateType<C = { readonly [name: string]: unknown }> {
  readonly kind: 'alternate';
  readonly name: string;
  readonly doc: string;
  readonly branches: C;
  readonly features: readonly string[];
}

/**
 * A type that is named before it is defined, for recursion. `Box` is an interface
 * `{ readonly type: typeof Later }`: interfaces are the one thing TypeScript resolves late.
 */
export interface LazyType<Box = unknown> {
  readonly kind: 'lazy';
  readonly get: () => AnyType;
  /** Never set; carries the type. */
  readonly box?: Box;
}

export type ObjectType = StructType | UnionType;
export type AnyType =
  | BuiltinType
  | EnumType
  | ArrayType
  | StructType
  | UnionType
  | AlternateType
  | LazyType;

type Simplify<T> = { [K in keyof T]: T[K] } & {};
type OptionalKeys<M> = { [K in keyof M]: M[K] extends Member<unknown, true> ? K : never }[keyof M];
type RequiredKeys<M> = Exclude<keyof M, OptionalKeys<M>>;
type TypeOfMember<M> = M extends { readonly type: infer T } ? T : never;

type InferMembers<M> = { [K in RequiredKeys<M>]: Infer<TypeOfMember<M[K]>> } & {
  [K in OptionalKeys<M>]?: Infer<TypeOfMember<M[K]>>;
};
type OutputMembers<M> = { readonly [K in RequiredKeys<M>]: Output<TypeOfMember<M[K]>> } & {
  readonly [K in OptionalKeys<M>]?: Output<TypeOfMember<M[K]>> | undefined;
};
type InferBase<B> = B extends { readonly kind: 'struct' } ? Infer<B> : unknown;
type OutputBase<B> = B extends { readonly kind: 'struct' } ? Output<B> : unknown;

type Arms<Base, D extends string, C, Out extends boolean> = Base extends {
  readonly [K in D]: infer Tags extends string;
}
  ? {
      [K in Tags]: Simplify<
        Omit<Base, D> & { readonly [P in D]: K } & (K extends keyof C
            ? Out extends true
              ? Output<C[K]>
              : Infer<C[K]>
            : unknown)
      >;
    }[Tags]
  : never;

/** The type of a checked value of `T`: what a command handler gets. */
export type Infer<T> =
  T extends BuiltinType<infer N>
    ? BuiltinValues[N]
    : T extends EnumType<infer V>
      ? V
      : T extends ArrayType<infer E>
        ? Infer<E>[]
        : T extends StructType<infer M, infer B>
          ? Simplify<InferBase<B> & InferMembers<M>>
          : T extends UnionType<infer M, infer B, infer D, infer C>
            ? Arms<Simplify<InferBase<B> & InferMembers<M>>, D, C, false>
            : T extends AlternateType<infer C>
              ? { [K in keyof C]: Infer<C[K]> }[keyof C]
              : T extends LazyType<infer Box>
                ? Infer<Box extends { readonly type: infer Later } ? Later : never>
                : never;

/** The type of a value of `T` that we make ourselves: optional members may also be undefined. */
export type Output<T> =
  T extends BuiltinType<infer N>
    ? BuiltinValues[N]
    : T extends EnumType<infer V>
      ? V
      : T extends ArrayType<infer E>
        ? readonly Output<E>[]
        : T extends StructType<infer M, infer B>
          ? Simplify<OutputBase<B> & OutputMembers<M>>
          : T extends UnionType<infer M, infer B, infer D, infer C>
            ? Arms<Simplify<OutputBase<B> & OutputMembers<M>>, D, C, true>
            : T extends AlternateType<infer C>
              ? { [K in keyof C]: Output<C[K]> }[keyof C]
              : T extends LazyType<infer Box>
                ? Output<Box extends { readonly type: infer Later } ? Later : never>
                : never;

/** A command: what it is called, takes and returns. */
export interface CommandDefinition<A = ObjectType, R = AnyType | undefined> {
  readonly kind: 'command';
  readonly name: string;
  readonly doc: string;
  readonly arguments: A;
  /** undefined: the command returns an empty object. */
  readonly result: R;
  /** May run out of band, ahead of commands that wait. */
  readonly oob: boolean;
  readonly features: readonly string[];
}

/** An event: what it is called and carries. */
export interface EventDefinition<D = ObjectType> {
  readonly kind: 'event';
  readonly name: string;
  readonly doc: string;
  readonly data: D;
  /** At most one per this many milliseconds for each `rateKey`, the newest wins; absent: never held back. */
  readonly rateLimitMs?: number;
  /** The member of the data that tells apart what is limited separately. */
  readonly rateKey?: string;
  readonly features: readonly string[];
}

/** What the handler of a command gets. */
export type ArgumentsOf<C> = C extends CommandDefinition<infer A, infer _R> ? Infer<A> : never;
/** What the handler of a command returns. */
export type ResultOf<C> =
  C extends CommandDefinition<infer _A, infer R> ? (R extends undefined ? void : Output<R>) : never;
/** What goes with an event. */
export type DataOf<E> = E extends EventDefinition<infer D> ? Output<D> : never;
