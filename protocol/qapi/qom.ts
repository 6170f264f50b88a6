// SPDX-License-Identifier: MIT
/** Objects that nodes refer to. @see QEMU's qapi/qom.json */
import {
  anyType,
  array,
  bool,
  defineCommand,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
  union,
} from './define.js';

const sustainedBytes = 'bytes a second, over time; 0: no limit';
const sustainedRequests = 'requests a second, over time; 0: no limit';
const burstBytes = 'bytes a second, in bursts; 0: no bursts';
const burstRequests = 'requests a second, in bursts; 0: no bursts';
const burstLength = 'how long a burst may last, seconds';

export const ThrottleLimits = struct('ThrottleLimits', {
  doc: 'Limits of speed, of reads and writes together or apart.',
  members: {
    'iops-total': optional(int, `all: ${sustainedRequests}`, { default: '0' }),
    'iops-total-max': optional(int, `all: ${burstRequests}`, { default: '0' }),
    'iops-total-max-length': optional(int, `all: ${burstLength}`, { default: '1' }),
    'iops-read': optional(int, `reads: ${sustainedRequests}`, { default: '0' }),
    'iops-read-max': optional(int, `reads: ${burstRequests}`, { default: '0' }),
    'iops-read-max-length': optional(int, `reads: ${burstLength}`, { default: '1' }),
    'iops-write': optional(int, `writes: ${sustainedRequests}`, { default: '0' }),
    'iops-write-max': optional(int, `writes: ${burstRequests}`, { default: '0' }),
    'iops-write-max-length': optional(int, `writes: ${burstLength}`, { default: '1' }),
    'bps-total': optional(int, `all: ${sustainedBytes}`, { default: '0' }),
    'bps-total-max': optional(int, `all: ${burstBytes}`, { default: '0' }),
    'bps-total-max-length': optional(int, `all: ${burstLength}`, { default: '1' }),
    'bps-read': optional(int, `reads: ${sustainedBytes}`, { default: '0' }),
    'bps-read-max': optional(int, `reads: ${burstBytes}`, { default: '0' }),
    'bps-read-max-length': optional(int, `reads: ${burstLength}`, { default: '1' }),
    'bps-write': optional(int, `writes: ${sustainedBytes}`, { default: '0' }),
    'bps-write-max': optional(int, `writes: ${burstBytes}`, { default: '0' }),
    'bps-write-max-length': optional(int, `writes: ${burstLength}`, { default: '1' }),
    'iops-size': optional(
      int,
      'requests longer than this count as several, bytes; 0: each counts as one',
      { default: '0' },
    ),
  },
});

/** The older spelling of one limit, beside `limits`. */
function alias<const N extends keyof (typeof ThrottleLimits)['members']>(name: N) {
  return optional(int, `the same as ${name} in limits`, { features: ['unstable'] });
}

export const ThrottleGroupProperties = struct('ThrottleGroupProperties', {
  doc: 'Limits that all throttle nodes of the group share.',
  members: {
    limits: optional(ThrottleLimits, 'the limits', { default: 'none' }),
    'x-iops-total': alias('iops-total'),
    'x-iops-total-max': alias('iops-total-max'),
    'x-iops-total-max-length': alias('iops-total-max-length'),
    'x-iops-read': alias('iops-read'),
    'x-iops-read-max': alias('iops-read-max'),
    'x-iops-read-max-length': alias('iops-read-max-length'),
    'x-iops-write': alias('iops-write'),
    'x-iops-write-max': alias('iops-write-max'),
    'x-iops-write-max-length': alias('iops-write-max-length'),
    'x-bps-total': alias('bps-total'),
    'x-bps-total-max': alias('bps-total-max'),
    'x-bps-total-max-length': alias('bps-total-max-length'),
    'x-bps-read': alias('bps-read'),
    'x-bps-read-max': alias('bps-read-max'),
    'x-bps-read-max-length': alias('bps-read-max-length'),
    'x-bps-write': alias('bps-write'),
    'x-bps-write-max': alias('bps-write-max'),
    'x-bps-write-max-length': alias('bps-write-max-length'),
    'x-iops-size': alias('iops-size'),
  },
});

export const QCryptoSecretFormat = enumeration('QCryptoSecretFormat', {
  doc: 'How a secret is written.',
  values: { raw: 'as it is', base64: 'in base64, for any bytes' },
});

export const SecretCommonProperties = struct('SecretCommonProperties', {
  doc: 'How a secret is to be read.',
  members: {
    format: optional(QCryptoSecretFormat, 'how it is written', { default: 'raw' }),
    keyid: optional(str, 'id of the secret, of 32 bytes, that it is encrypted with (AES-256-CBC)', {
      default: 'it is not encrypted',
    }),
    iv: optional(str, 'the initialization vector, base64; needed with keyid'),
  },
});

export const SecretProperties = struct('SecretProperties', {
  doc: 'A passphrase or key; either data or file is given. No query tells it.',
  base: SecretCommonProperties,
  members: {
    data: optional(str, 'the secret'),
    file: optional(str, 'path of a file that has it'),
  },
});

export const ObjectType = enumeration('ObjectType', {
  doc: 'Kinds of objects.',
  values: {
    secret: 'a passphrase or key, for encrypted images',
    'throttle-group': 'limits of speed, for throttle nodes',
  },
});

export const ObjectOptions = union('ObjectOptions', {
  doc: 'An object.',
  members: {
    'qom-type': required(ObjectType, 'its kind'),
    id: required(str, 'its id'),
  },
  discriminator: 'qom-type',
  branches: { secret: SecretProperties, 'throttle-group': ThrottleGroupProperties },
});

export const OBJECT_ADD = defineCommand({
  name: 'object-add',
  doc: 'Makes an object.',
  arguments: ObjectOptions,
});

export const OBJECT_DEL = defineCommand({
  name: 'object-del',
  doc: 'Removes an object that nothing uses.',
  arguments: { id: required(str, 'its id') },
});

export const ObjectPropertyInfo = struct('ObjectPropertyInfo', {
  doc: 'A property of an object.',
  members: {
    name: required(str, 'its name'),
    type: required(str, 'its type; "child<TYPE>" for an object inside'),
    description: optional(str, 'what it means'),
    'default-value': optional(anyType, 'its value unless another is given'),
  },
});

const objectPath = required(str, 'where the object is: /objects/ID, or ID alone');

export const QOM_LIST = defineCommand({
  name: 'qom-list',
  doc: 'Lists the properties of an object, and the objects inside it.',
  arguments: { path: objectPath },
  result: array(ObjectPropertyInfo),
});

export const QOM_GET = defineCommand({
  name: 'qom-get',
  doc: 'Tells the value of a property.',
  arguments: { path: objectPath, property: required(str, 'name of the property') },
  result: anyType,
});

export const QOM_SET = defineCommand({
  name: 'qom-set',
  doc: 'Changes the value of a property.',
  arguments: {
    path: objectPath,
    property: required(str, 'name of the property'),
    value: required(anyType, 'the new value'),
  },
});

export const ObjectTypeInfo = struct('ObjectTypeInfo', {
  doc: 'A kind of object.',
  members: {
    name: required(str, 'its name'),
    abstract: optional(bool, 'there are no objects of just this kind', { default: 'false' }),
    parent: optional(str, 'the kind that it is a special case of'),
  },
});

export const QOM_LIST_TYPES = defineCommand({
  name: 'qom-list-types',
  doc: 'Lists the kinds of objects.',
  arguments: {
    implements: optional(str, 'only this kind and its special cases'),
    abstract: optional(bool, 'also kinds of which there are no objects', { default: 'false' }),
  },
  result: array(ObjectTypeInfo),
});

export const QOM_COMMANDS = [
  OBJECT_ADD,
  OBJECT_DEL,
  QOM_LIST,
  QOM_GET,
  QOM_SET,
  QOM_LIST_TYPES,
] as const;
