// SPDX-License-Identifier: MIT
/** Commands and events of nodes. @see QEMU's qapi/block-core.json, block.json */
import { BlockdevOptions } from './block-core-options.js';
import { BlockDeviceInfo, BlockInfo, BlockStats, XDbgBlockGraph } from './block-nodes-info.js';
import { IoOperationType } from './common.js';
import {
  array,
  bool,
  defineCommand,
  defineEvent,
  enumeration,
  int,
  optional,
  required,
  str,
  uint64,
} from './define.js';

export const BLOCKDEV_ADD = defineCommand({
  name: 'blockdev-add',
  doc: 'Adds a node to the graph, and those that are defined inside it.',
  arguments: BlockdevOptions,
});

export const BLOCKDEV_REOPEN = defineCommand({
  name: 'blockdev-reopen',
  doc: 'Gives nodes new options: what is not given is as if it never had been. All or none change.',
  arguments: { options: required(array(BlockdevOptions), 'all options of each node') },
});

export const BLOCKDEV_DEL = defineCommand({
  name: 'blockdev-del',
  doc: 'Removes a node that was added by blockdev-add and that nothing uses.',
  arguments: { 'node-name': required(str, 'name of the node') },
});

export const BLOCKDEV_SET_ACTIVE = defineCommand({
  name: 'blockdev-set-active',
  doc: 'Gives images up for another process, or takes them back.',
  arguments: {
    'node-name': optional(str, 'name of the node', { default: 'all nodes' }),
    active: required(bool, 'true: take it back; false: flush it, give it up and refuse writes'),
  },
});

export const X_BLOCKDEV_CHANGE = defineCommand({
  name: 'x-blockdev-change',
  doc:
    'Gives a quorum node that may be in use one copy more, or takes one. A copy that comes must have ' +
    'the content of the others: it is not made equal.',
  arguments: {
    parent: required(str, 'name of the node whose children change'),
    child: optional(str, 'name of the child that goes: "children.0", for one'),
    node: optional(str, 'name of the node that becomes a child; it has no other users'),
  },
  features: ['unstable'],
});

export const BLOCK_RESIZE = defineCommand({
  name: 'block_resize',
  doc: 'Changes the size of a node, in use or not.',
  arguments: {
    device: optional(str, 'name of a device; there are none, so node-name is needed'),
    'node-name': optional(str, 'name of the node'),
    size: required(int, 'the new size, bytes'),
  },
});

export const BLOCK_PASSWD = defineCommand({
  name: 'block_passwd',
  doc: 'Always fails: images are unlocked by secrets given when they are opened.',
  arguments: {
    device: optional(str, 'name of a device'),
    'node-name': optional(str, 'name of a node'),
    password: required(str, 'the password'),
  },
  features: ['deprecated'],
});

export const QUERY_NAMED_BLOCK_NODES = defineCommand({
  name: 'query-named-block-nodes',
  doc: 'Lists the nodes.',
  arguments: {
    flat: optional(bool, 'leave the backing images out of each image', { default: 'false' }),
  },
  result: array(BlockDeviceInfo),
});

export const QUERY_BLOCK = defineCommand({
  name: 'query-block',
  doc: 'Lists the devices.',
  result: array(BlockInfo),
});

export const QUERY_BLOCKSTATS = defineCommand({
  name: 'query-blockstats',
  doc: 'Tells what devices, or nodes, have done.',
  arguments: {
    'query-nodes': optional(bool, 'of all nodes, instead of devices', { default: 'false' }),
  },
  result: array(BlockStats),
});

export const BLOCK_LATENCY_HISTOGRAM_SET = defineCommand({
  name: 'block-latency-histogram-set',
  doc: 'Counts requests by the time that they take, from zero; without boundaries: stops counting.',
  arguments: {
    id: required(str, 'id of an export or name of a node'),
    boundaries: optional(array(uint64), 'where bins meet, nanoseconds, ascending; for all kinds'),
    'boundaries-read': optional(array(uint64), 'for reads, before what boundaries says'),
    'boundaries-write': optional(array(uint64), 'for writes, before what boundaries says'),
    'boundaries-flush': optional(array(uint64), 'for flushes, before what boundaries says'),
  },
});

export const BLOCK_SET_WRITE_THRESHOLD = defineCommand({
  name: 'block-set-write-threshold',
  doc: 'Asks for an event, once, when a write reaches past an offset.',
  arguments: {
    'node-name': required(str, 'name of the node'),
    'write-threshold': required(uint64, 'the offset, bytes; 0: no event'),
  },
});

export const X_DEBUG_QUERY_BLOCK_GRAPH = defineCommand({
  name: 'x-debug-query-block-graph',
  doc: 'Tells the whole graph, with permissions.',
  result: XDbgBlockGraph,
  features: ['unstable'],
});

export const BLOCK_WRITE_THRESHOLD = defineEvent({
  name: 'BLOCK_WRITE_THRESHOLD',
  doc: 'A write reaches past the offset set by block-set-write-threshold, which is now forgotten.',
  data: {
    'node-name': required(str, 'name of the node'),
    'amount-exceeded': required(uint64, 'how far the write reaches past it, bytes'),
    'write-threshold': required(uint64, 'the offset, bytes'),
  },
});

export const BLOCK_IMAGE_CORRUPTED = defineEvent({
  name: 'BLOCK_IMAGE_CORRUPTED',
  doc: 'An image contradicts itself.',
  data: {
    device: required(str, 'name of the device; always empty'),
    'node-name': optional(str, 'name of the node'),
    msg: required(str, 'what is wrong, for people'),
    offset: optional(int, 'where, bytes of the image file'),
    size: optional(int, 'how much of it, bytes'),
    fatal: required(bool, 'the image is marked as corrupt and can not be used any more'),
  },
});

export const BlockErrorAction = enumeration('BlockErrorAction', {
  doc: 'What is done about an error.',
  values: {
    ignore: 'nothing',
    report: 'who asked is told',
    stop: 'what asked is stopped until it is told to go on',
  },
});

export const BLOCK_IO_ERROR = defineEvent({
  name: 'BLOCK_IO_ERROR',
  doc: 'A request of a client failed.',
  data: {
    device: required(str, 'id of the export'),
    'node-name': optional(str, 'name of the node'),
    operation: required(IoOperationType, 'direction of the request'),
    action: required(BlockErrorAction, 'what was done about it'),
    nospace: optional(bool, 'it failed for want of space'),
    reason: required(str, 'the error, for people'),
  },
  rateLimitMs: 1000,
  rateKey: 'device',
});

export const QuorumOpType = enumeration('QuorumOpType', {
  doc: 'Kinds of requests to the copies of a quorum node.',
  values: { read: 'a read', write: 'a write, also of zeroes', flush: 'a flush' },
});

export const QUORUM_FAILURE = defineEvent({
  name: 'QUORUM_FAILURE',
  doc: 'Too few copies of a quorum node have succeeded, or agree: a request failed.',
  data: {
    reference: required(str, 'name of the node'),
    'sector-num': required(int, 'where the request starts, in sectors of 512 bytes'),
    'sectors-count': required(int, 'its length, in sectors of 512 bytes, begun ones included'),
  },
  rateLimitMs: 1000,
});

export const QUORUM_REPORT_BAD = defineEvent({
  name: 'QUORUM_REPORT_BAD',
  doc: 'One copy of a quorum node failed, or (no error) was outvoted.',
  data: {
    type: required(QuorumOpType, 'kind of the request'),
    error: optional(str, 'why it failed, for people'),
    'node-name': required(str, 'name of the copy'),
    'sector-num': required(int, 'where the request starts, in sectors of 512 bytes'),
    'sectors-count': required(int, 'its length, in sectors of 512 bytes, begun ones included'),
  },
  rateLimitMs: 1000,
  rateKey: 'node-name',
});

export const BLOCK_CORE_COMMANDS = [
  BLOCKDEV_ADD,
  BLOCKDEV_REOPEN,
  BLOCKDEV_DEL,
  BLOCKDEV_SET_ACTIVE,
  X_BLOCKDEV_CHANGE,
  BLOCK_RESIZE,
  BLOCK_PASSWD,
  QUERY_NAMED_BLOCK_NODES,
  QUERY_BLOCK,
  QUERY_BLOCKSTATS,
  BLOCK_LATENCY_HISTOGRAM_SET,
  BLOCK_SET_WRITE_THRESHOLD,
  X_DEBUG_QUERY_BLOCK_GRAPH,
] as const;

export const BLOCK_CORE_EVENTS = [
  BLOCK_WRITE_THRESHOLD,
  BLOCK_IMAGE_CORRUPTED,
  BLOCK_IO_ERROR,
  QUORUM_FAILURE,
  QUORUM_REPORT_BAD,
] as const;
