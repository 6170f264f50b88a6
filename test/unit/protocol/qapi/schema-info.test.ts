// SPDX-License-Identifier: MIT
import { describe, expect, test } from 'vitest';
import { QAPI_COMMANDS, QAPI_EVENTS } from '../../../../protocol/qapi/all.js';
import {
  type AnyType,
  alternate,
  array,
  defineCommand,
  defineEvent,
  enumeration,
  int8,
  lazy,
  optional,
  required,
  str,
  struct,
  union,
} from '../../../../protocol/qapi/define.js';
import { SchemaInfo } from '../../../../protocol/qapi/introspect.js';
import { schemaInfo } from '../../../../protocol/qapi/schema-info.js';
import { membersOf, resolve } from '../../../../protocol/qapi/structure.js';
import type { ObjectType } from '../../../../protocol/qapi/types.js';
import { validate } from '../../../../protocol/qapi/validate.js';

const Kind = enumeration('Kind', {
  doc: '',
  values: ['a', 'b'],
  valueFeatures: { b: ['deprecated'] },
});
interface RefBox {
  readonly type: typeof Ref;
}
const Base = struct('Base', { doc: '', members: { name: optional(str, '') } });
const Branch = struct('Branch', {
  doc: '',
  members: {
    child: required(
      lazy<RefBox>((): AnyType => Ref),
      '',
      { features: ['unstable'] },
    ),
    numbers: required(array(int8), ''),
  },
});
const Thing = union('Thing', {
  doc: '',
  base: Base,
  members: { kind: required(Kind, '') },
  discriminator: 'kind',
  branches: { a: Branch },
});
const Ref = alternate('Ref', { doc: '', branches: { definition: Thing, reference: str } });

test('the schema is told in the form that QEMU uses', () => {
  const command = defineCommand({
    name: 'add',
    doc: '',
    arguments: Thing,
    result: array(Kind),
    oob: true,
  });
  const event = defineEvent({ name: 'ADDED', doc: '' });
  expect(schemaInfo([command], [event])).toEqual([
    { name: 'add', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '[1]', 'allow-oob': true },
    { name: 'ADDED', 'meta-type': 'event', 'arg-type': '2' },
    {
      name: '0',
      'meta-type': 'object',
      members: [
        { name: 'name', type: 'str', default: null },
        { name: 'kind', type: '1' },
      ],
      tag: 'kind',
      variants: [
        { case: 'a', type: '3' },
        { case: 'b', type: '2' },
      ],
    },
    {
      name: '1',
      'meta-type': 'enum',
      members: [{ name: 'a' }, { name: 'b', features: ['deprecated'] }],
      values: ['a', 'b'],
    },
    { name: '[1]', 'meta-type': 'array', 'element-type': '1' },
    { name: '2', 'meta-type': 'object', members: [] },
    { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' },
    {
      name: '3',
      'meta-type': 'object',
      members: [
        { name: 'child', type: '4', features: ['unstable'] },
        { name: 'numbers', type: '[int]' },
      ],
    },
    { name: '4', 'meta-type': 'alternate', members: [{ type: '0' }, { type: 'str' }] },
    { name: 'int', 'meta-type': 'builtin', 'json-type': 'int' },
    { name: '[int]', 'meta-type': 'array', 'element-type': 'int' },
  ]);
});

describe('the schema of the daemon', () => {
  const infos = schemaInfo(QAPI_COMMANDS, QAPI_EVENTS);

  test('fits its own description', () => {
    expect(() => validate(array(SchemaInfo), infos as never)).not.toThrow();
  });

  test('names every type that it uses, once', () => {
    const names = infos.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
  });

  test('has a sentence for every command, event and member', () => {
    const silent: string[] = [];
    const visited = new Set<unknown>();
    const visit = (type: AnyType): void => {
      const resolved = resolve(type);
      if (visited.has(resolved)) return;
      visited.add(resolved);
      if (resolved.kind === 'array') visit(resolved.element as AnyType);
      if (resolved.kind === 'alternate') {
        for (const branch of Object.values(resolved.branches)) visit(branch as AnyType);
      }
      if (resolved.kind !== 'struct' && resolved.kind !== 'union') return;
      for (const [name, member] of membersOf(resolved)) {
        if (member.doc === '') silent.push(`${resolved.name}.${name}`);
        visit(member.type);
      }
      if (resolved.kind === 'union') Object.values(resolved.branches).forEach(visit);
    };
    for (const definition of [...QAPI_COMMANDS, ...QAPI_EVENTS]) {
      if (definition.doc === '') silent.push(definition.name);
      visit((definition.kind === 'command' ? definition.arguments : definition.data) as ObjectType);
      if (definition.kind === 'command' && definition.result !== undefined)
        visit(definition.result);
    }
    expect(silent).toEqual([]);
  });
});
