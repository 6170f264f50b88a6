// SPDX-License-Identifier: MIT
/** Writes docs/qmp-reference.md from the schema: node dist/scripts/make-qmp-docs.js [FILE]. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { QAPI_COMMANDS, QAPI_EVENTS } from '../protocol/qapi/all.js';
import { membersOf, resolve } from '../protocol/qapi/structure.js';
import type {
  AnyType,
  CommandDefinition,
  EnumType,
  EventDefinition,
  Member,
  ObjectType,
} from '../protocol/qapi/types.js';

type Resolved = ReturnType<typeof resolve>;

/** Types in the order in which commands and events first use them. */
class Reference {
  readonly #types: Exclude<Resolved, { kind: 'builtin' | 'array' }>[] = [];
  readonly #seen = new Set<Resolved>();

  /** Commands, events, and every type that they use. */
  text(commands: readonly CommandDefinition[], events: readonly EventDefinition[]): string {
    const parts = [
      '# QMP reference',
      'Made from the schema in `protocol/qapi/`; do not edit. Sizes and offsets are bytes.',
      '## Commands',
      ...commands.flatMap((command) => this.#command(command)),
      '## Events',
      ...events.flatMap((event) => this.#event(event)),
      '## Types',
    ];
    // Describing a type may find further ones, which then follow.
    for (const type of this.#types) parts.push(...this.#type(type));
    return `${parts.join('\n\n')}\n`;
  }

  #command(command: CommandDefinition): string[] {
    const { name, doc, result, oob, features } = command;
    const notes = [
      ...(oob ? ['May run out of band.'] : []),
      ...(features.length > 0 ? [`Features: ${features.join(', ')}.`] : []),
    ];
    return [
      `### ${name}`,
      [doc, ...notes].join(' '),
      ...this.#arguments(command.arguments, 'Arguments'),
      result === undefined ? 'Returns nothing.' : `Returns ${this.#link(result)}.`,
    ];
  }

  #event(event: EventDefinition): string[] {
    const { name, doc, rateLimitMs } = event;
    const limit = rateLimitMs === undefined ? '' : ` At most one in ${rateLimitMs} ms.`;
    return [`### ${name}`, doc + limit, ...this.#arguments(event.data, 'Data')];
  }

  /** Members in place, or the name of the type where it has one of its own. */
  #arguments(type: ObjectType, title: string): string[] {
    if (!type.name.startsWith('q_obj_')) return [`${title}: ${this.#link(type)}.`];
    const members = membersOf(type);
    return members.size === 0 ? [] : [`${title}:`, this.#members(members)];
  }

  #members(members: ReadonlyMap<string, Member<AnyType>>): string {
    const lines = [...members].map(([name, member]) => {
      const { optional, doc, features } = member;
      const fallback = member.default !== undefined ? `; default: ${member.default}` : '';
      const marks = [...(optional ? ['optional'] : []), ...features];
      const mark = marks.length > 0 ? ` (${marks.join(', ')})` : '';
      return `- \`${name}\`: ${this.#link(member.type)}${mark}: ${doc}${fallback}`;
    });
    return lines.join('\n');
  }

  /** The name of a type, with a link to its description. */
  #link(type: AnyType): string {
    const resolved = resolve(type);
    if (resolved.kind === 'builtin') return `\`${resolved.name}\``;
    if (resolved.kind === 'array') return `list of ${this.#link(resolved.element as AnyType)}`;
    if (!this.#seen.has(resolved)) {
      this.#seen.add(resolved);
      this.#types.push(resolved);
    }
    return `[${resolved.name}](#${resolved.name.toLowerCase()})`;
  }

  #type(type: Exclude<Resolved, { kind: 'builtin' | 'array' }>): string[] {
    const head = [`### ${type.name}`, type.doc];
    if (type.kind === 'enum') return [...head, enumText(type)];
    if (type.kind === 'alternate') {
      const links = Object.values(type.branches).map((branch) => this.#link(branch as AnyType));
      return [...head, `One of ${links.join(', ')}.`];
    }
    const members = membersOf(type);
    const own = members.size > 0 ? [this.#members(members)] : [];
    if (type.kind === 'struct') return [...head, ...own];
    const branches = Object.entries(type.branches).map(
      ([value, branch]) => `- \`${type.discriminator}\` is \`${value}\`: ${this.#link(branch)}`,
    );
    return [...head, ...own, 'And:', branches.join('\n')];
  }
}

function enumText(type: EnumType): string {
  const lines = type.values.map((value) => {
    const doc = type.valueDocs[value];
    return doc === undefined ? `- \`${value}\`` : `- \`${value}\`: ${doc}`;
  });
  return lines.join('\n');
}

/** The reference of the whole schema, in Markdown. */
export function qmpReference(): string {
  return new Reference().text(QAPI_COMMANDS, QAPI_EVENTS);
}

if (import.meta.url === `file://${path.resolve(process.argv[1] ?? '')}`) {
  const file = process.argv[2] ?? 'docs/qmp-reference.md';
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, qmpReference());
}
