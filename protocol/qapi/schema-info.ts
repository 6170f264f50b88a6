// SPDX-License-Identifier: MIT
/**
 * The answer to `query-qmp-schema`, made from the definitions. As in QEMU, commands and events
 * come first, then the types that they use in the order of use; names of enums, objects and alternates
 * are replaced by numbers, since clients shall start from commands and not from names of types.
 */

import { struct } from './define.js';
import type { SchemaInfo } from './introspect.js';
import { discriminatorOf, jsonTypeOf, membersOf, resolve } from './structure.js';
import type {
  AlternateType,
  AnyType,
  CommandDefinition,
  EnumType,
  EventDefinition,
  Member,
  ObjectType,
  Output,
} from './types.js';

type Info = Output<typeof SchemaInfo>;
type Resolved = ReturnType<typeof resolve>;

/** Returns nothing, and has no members. */
const EMPTY = struct('q_empty', { doc: 'No members.' });

function withFeatures(features: readonly string[]): { readonly features?: readonly string[] } {
  return features.length > 0 ? { features } : {};
}

class SchemaWriter {
  readonly infos: Info[] = [];
  readonly #numbers = new Map<string, string>();
  readonly #owners = new Map<string, Resolved>();
  readonly #seen = new Set<string>();
  readonly #queue: Resolved[] = [];

  /** The name under which `type` appears; its description follows later. */
  use(type: AnyType): string {
    const resolved = resolve(type);
    const name = this.#nameOf(resolved);
    if (!this.#seen.has(name)) {
      this.#seen.add(name);
      this.#queue.push(resolved);
    }
    return name;
  }

  #nameOf(type: Resolved): string {
    if (type.kind === 'builtin') return jsonTypeOf(type) === 'int' ? 'int' : type.name;
    if (type.kind === 'array') return `[${this.use(type.element as AnyType)}]`;
    const owner = this.#owners.get(type.name);
    if (owner !== undefined && owner !== type) {
      throw new Error(`two types are called ${type.name}`);
    }
    this.#owners.set(type.name, type);
    const number = this.#numbers.get(type.name) ?? String(this.#numbers.size);
    this.#numbers.set(type.name, number);
    return number;
  }

  command(definition: CommandDefinition): void {
    this.infos.push({
      name: definition.name,
      'meta-type': 'command',
      'arg-type': this.use(this.#argument(definition.arguments)),
      'ret-type': this.use(definition.result ?? EMPTY),
      ...(definition.oob ? { 'allow-oob': true } : {}),
      ...withFeatures(definition.features),
    });
  }

  event(definition: EventDefinition): void {
    this.infos.push({
      name: definition.name,
      'meta-type': 'event',
      'arg-type': this.use(this.#argument(definition.data)),
      ...withFeatures(definition.features),
    });
  }

  /** Arguments without any member are the same empty object everywhere. */
  #argument(type: ObjectType): ObjectType {
    return type.kind === 'struct' && membersOf(type).size === 0 ? EMPTY : type;
  }

  /** Describes all types used so far, and those that they use. */
  types(): void {
    for (let type = this.#queue.shift(); type !== undefined; type = this.#queue.shift()) {
      this.infos.push(this.#describe(type));
    }
  }

  #describe(type: Resolved): Info {
    const name = this.#nameOf(type);
    switch (type.kind) {
      case 'builtin':
        return { name, 'meta-type': 'builtin', 'json-type': jsonTypeOf(type) };
      case 'array':
        return { name, 'meta-type': 'array', 'element-type': this.use(type.element as AnyType) };
      case 'enum':
        return this.#describeEnum(name, type);
      case 'alternate':
        return this.#describeAlternate(name, type);
      default:
        return this.#describeObject(name, type);
    }
  }

  #describeEnum(name: string, type: EnumType): Info {
    const members = type.values.map((value) => ({
      name: value,
      ...withFeatures(type.valueFeatures[value] ?? []),
    }));
    const features = withFeatures(type.features);
    return { name, 'meta-type': 'enum', members, values: type.values, ...features };
  }

  #describeAlternate(name: string, type: AlternateType): Info {
    const members = (Object.values(type.branches) as AnyType[]).map((branch) => ({
      type: this.use(branch),
    }));
    return { name, 'meta-type': 'alternate', members, ...withFeatures(type.features) };
  }

  #describeObject(name: string, type: ObjectType): Info {
    const members = [...membersOf(type)].map(([key, member]) => this.#describeMember(key, member));
    const features = withFeatures(type.features);
    if (type.kind === 'struct') return { name, 'meta-type': 'object', members, ...features };
    const missing = discriminatorOf(type).values.filter((v) => !Object.hasOwn(type.branches, v));
    const variants = [
      ...Object.entries(type.branches).map(([key, branch]) => ({
        case: key,
        type: this.use(branch),
      })),
      ...missing.map((key) => ({ case: key, type: this.use(EMPTY) })),
    ];
    return { name, 'meta-type': 'object', members, tag: type.discriminator, variants, ...features };
  }

  #describeMember(name: string, member: Member<AnyType>) {
    return {
      name,
      type: this.use(member.type),
      ...(member.optional ? { default: null } : {}),
      ...withFeatures(member.features),
    };
  }
}

/** Describes commands, events and all types that they use, in QEMU's form. */
export function schemaInfo(
  commands: readonly CommandDefinition[],
  events: readonly EventDefinition[],
): readonly Info[] {
  const writer = new SchemaWriter();
  for (const command of commands) writer.command(command);
  for (const event of events) writer.event(event);
  writer.types();
  return writer.infos;
}
