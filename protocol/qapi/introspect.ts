// SPDX-License-Identifier: MIT
/** The schema, told through the schema. @see QEMU's qapi/introspect.json */
import {
  anyType,
  array,
  bool,
  defineCommand,
  enumeration,
  optional,
  required,
  str,
  struct,
  union,
} from './define.js';

export const SchemaMetaType = enumeration('SchemaMetaType', {
  doc: 'Kinds of things in the schema.',
  values: ['builtin', 'enum', 'array', 'object', 'alternate', 'command', 'event'],
});

export const JSONType = enumeration('JSONType', {
  doc: 'JSON types, with whole numbers apart.',
  values: ['string', 'number', 'int', 'boolean', 'null', 'object', 'array', 'value'],
});

const SchemaInfoBuiltin = struct('SchemaInfoBuiltin', {
  doc: 'A built-in type.',
  members: { 'json-type': required(JSONType, 'the JSON type of its values') },
});

const SchemaInfoEnumMember = struct('SchemaInfoEnumMember', {
  doc: 'A value of an enum.',
  members: {
    name: required(str, 'the value'),
    features: optional(array(str), 'its features'),
  },
});

const SchemaInfoEnum = struct('SchemaInfoEnum', {
  doc: 'A set of words.',
  members: {
    members: required(array(SchemaInfoEnumMember), 'the words'),
    values: required(array(str), 'the words without their features', { features: ['deprecated'] }),
  },
});

const SchemaInfoArray = struct('SchemaInfoArray', {
  doc: 'A list.',
  members: { 'element-type': required(str, 'type of its elements') },
});

const SchemaInfoObjectMember = struct('SchemaInfoObjectMember', {
  doc: 'A member of an object.',
  members: {
    name: required(str, 'its name'),
    type: required(str, 'its type'),
    default: optional(anyType, 'present when the member is optional; null: no fixed default'),
    features: optional(array(str), 'its features'),
  },
});

const SchemaInfoObjectVariant = struct('SchemaInfoObjectVariant', {
  doc: 'The members that a value of the tag adds.',
  members: {
    case: required(str, 'the value of the tag'),
    type: required(str, 'object type with the added members'),
  },
});

const SchemaInfoObject = struct('SchemaInfoObject', {
  doc: 'An object.',
  members: {
    members: required(array(SchemaInfoObjectMember), 'common members'),
    tag: optional(str, 'the member that tells variants apart'),
    variants: optional(array(SchemaInfoObjectVariant), 'what each value of the tag adds'),
  },
});

const SchemaInfoAlternateMember = struct('SchemaInfoAlternateMember', {
  doc: 'One of the types of an alternate.',
  members: { type: required(str, 'its name') },
});

const SchemaInfoAlternate = struct('SchemaInfoAlternate', {
  doc: 'A value of one of several types.',
  members: { members: required(array(SchemaInfoAlternateMember), 'the types') },
});

const SchemaInfoCommand = struct('SchemaInfoCommand', {
  doc: 'A command.',
  members: {
    'arg-type': required(str, 'object type of its arguments'),
    'ret-type': required(str, 'type of its result'),
    'allow-oob': optional(bool, 'whether it may run out of band', { default: 'false' }),
  },
});

const SchemaInfoEvent = struct('SchemaInfoEvent', {
  doc: 'An event.',
  members: { 'arg-type': required(str, 'object type of its data') },
});

export const SchemaInfo = union('SchemaInfo', {
  doc: 'A thing in the schema.',
  members: {
    name: required(str, 'its name; a number for types whose names may change'),
    'meta-type': required(SchemaMetaType, 'what it is'),
    features: optional(array(str), 'its features'),
  },
  discriminator: 'meta-type',
  branches: {
    builtin: SchemaInfoBuiltin,
    enum: SchemaInfoEnum,
    array: SchemaInfoArray,
    object: SchemaInfoObject,
    alternate: SchemaInfoAlternate,
    command: SchemaInfoCommand,
    event: SchemaInfoEvent,
  },
});

export const QUERY_QMP_SCHEMA = defineCommand({
  name: 'query-qmp-schema',
  doc: 'Tells the whole schema, from which clients learn which commands, arguments and events there are.',
  result: array(SchemaInfo),
});

export const INTROSPECT_COMMANDS = [QUERY_QMP_SCHEMA] as const;
