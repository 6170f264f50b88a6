// SPDX-License-Identifier: MIT
/** `--blockdev help`, `--blockdev DRIVER,help` and the like, from the schema. */
import { discriminatorOf, membersOf, resolve } from '../../protocol/qapi/structure.js';
import type {
  AlternateType,
  AnyType,
  EnumType,
  Member,
  ObjectType,
  UnionType,
} from '../../protocol/qapi/types.js';
import { BlockError } from '../base/errors.js';
import type { KeyvalTree } from './keyval.js';

export interface OptionLine {
  /** Dotted, as on the command line. */
  readonly key: string;
  /** What its value looks like: `string`, `on|off`. */
  readonly type: string;
  readonly doc: string;
}

/** Where descriptions begin; what is longer pushes its own to the right. */
const KIND_WIDTH = 22;
const OPTION_WIDTH = 44;

type Members = Iterable<readonly [string, Member<AnyType>]>;

/**
 * @param type what the option makes
 * @param tree what was given beside `help`: nothing, or the kind
 * @param what for headings: 'block driver'
 * @throws BlockError DF_INVALID for a kind that there is not
 */
export function optionHelp(type: ObjectType, tree: KeyvalTree, what: string): string {
  const help = new OptionHelp(type);
  if (type.kind === 'struct') return formatOptions(what, help.ofMembers('', membersOf(type)));
  const { discriminator } = type;
  const kind = tree[discriminator];
  if (kind === undefined) return listKinds(discriminatorOf(type), what);
  const known = typeof kind === 'string' && discriminatorOf(type).values.includes(kind);
  if (!known) {
    const text = `Parameter '${discriminator}' does not accept value '${String(kind)}'`;
    throw new BlockError('DF_INVALID', text);
  }
  const branch = Object.hasOwn(type.branches, kind) ? type.branches[kind] : undefined;
  const own = branch === undefined ? [] : membersOf(branch);
  const common = [...membersOf(type)].filter(([name]) => name !== discriminator);
  return formatOptions(kind, help.ofMembers('', [...own, ...common]));
}

/** @param what whose options they are */
export function formatOptions(what: string, lines: readonly OptionLine[]): string {
  const rows = lines.map(({ key, type, doc }) => row(`${key}=<${type}>`, doc, OPTION_WIDTH));
  return `${what} options:\n${rows.join('')}`;
}

/** @param what what they are kinds of */
export function listKinds({ values, valueDocs }: EnumType, what: string): string {
  const rows = values.map((kind) => row(kind, valueDocs[kind] ?? '', KIND_WIDTH));
  return `List of ${what}s:\n${rows.join('')}`;
}

function row(left: string, right: string, width: number): string {
  return `${`  ${left.padEnd(width)} ${right}`.trimEnd()}\n`;
}

/** Walks a type down to what is written as one word. */
class OptionHelp {
  constructor(private readonly root: ObjectType) {}

  ofMembers(prefix: string, members: Members): OptionLine[] {
    return [...members].flatMap(([name, { type, doc, optional, ...more }]) => {
      const fallback = more.default === undefined ? '' : ` (default: ${more.default})`;
      return this.#of(prefix + name, type, doc + (optional ? fallback : ' (required)'));
    });
  }

  #of(key: string, given: AnyType, doc: string): OptionLine[] {
    const type = resolve(given);
    switch (type.kind) {
      case 'array':
        return this.#of(`${key}.0`, type.element as AnyType, `${doc}; the next is ${key}.1`);
      case 'alternate':
        return this.#ofAlternate(key, type, doc);
      case 'struct':
        return this.ofMembers(`${key}.`, membersOf(type));
      case 'union':
        return this.#ofUnion(key, type);
      default:
        return [{ key, type: wordType(type), doc }];
    }
  }

  #ofUnion(key: string, type: UnionType): OptionLine[] {
    const lines = this.ofMembers(`${key}.`, membersOf(type));
    for (const [kind, branch] of Object.entries(type.branches)) {
      const marked = [...membersOf(branch)].map(
        ([name, member]) => [name, { ...member, doc: `${kind}: ${member.doc}` }] as const,
      );
      lines.push(...this.ofMembers(`${key}.`, marked));
    }
    return lines;
  }

  /** A node inside of a node is not gone into: its options are those of its driver. */
  #ofAlternate(key: string, { branches }: AlternateType, doc: string): OptionLine[] {
    const types = Object.values(branches).map((branch) => resolve(branch as AnyType));
    const objects = types.filter(({ kind }) => kind === 'struct' || kind === 'union');
    // null can be said in JSON only.
    const isWord = (type: (typeof types)[number]) =>
      !objects.includes(type) && !(type.kind === 'builtin' && type.name === 'null');
    const words = types.filter(isWord).map(wordType);
    const isNode = objects.includes(this.root);
    const more = isNode ? `; or ${key}.driver=DRIVER and its options` : '';
    return [
      { key, type: words.join('|'), doc: doc + more },
      ...objects.filter((type) => type !== this.root).flatMap((type) => this.#of(key, type, doc)),
    ];
  }
}

function wordType(type: AnyType): string {
  const resolved = resolve(type);
  if (resolved.kind === 'enum') return resolved.values.join('|');
  if (resolved.kind !== 'builtin') return resolved.kind;
  switch (resolved.name) {
    case 'str':
      return 'string';
    case 'bool':
      return 'on|off';
    case 'size':
      return 'size';
    default:
      return 'number';
  }
}
