// SPDX-License-Identifier: MIT
/**
 * The library entry `diskferry/qmp`: a client, and a monitor to serve commands of one's own with. A
 * command is data: `defineCommand` says its name, arguments and result in the words below (`struct`,
 * `required`, `str` and so on); `CommandRegistry.register` takes it with its handler, and the monitor
 * checks arguments by it. `defineEvent` does the same for what `EventHub` sends.
 */
export {
  alternate,
  anyType,
  array,
  bool,
  defineCommand,
  defineEvent,
  enumeration,
  int,
  int8,
  int16,
  int32,
  int64,
  lazy,
  nullType,
  number,
  optional,
  required,
  size,
  str,
  struct,
  uint8,
  uint16,
  uint32,
  uint64,
  union,
} from '../protocol/qapi/define.js';
export { schemaInfo } from '../protocol/qapi/schema-info.js';
export type {
  AnyType,
  ArgumentsOf,
  CommandDefinition,
  DataOf,
  EventDefinition,
  Infer,
  JsonObject,
  JsonValue,
  Output,
  ResultOf,
} from '../protocol/qapi/types.js';
export { QapiInputError, type ValidateOptions, validate } from '../protocol/qapi/validate.js';
export { errorText } from './base/error-text.js';
export { BlockError } from './base/errors.js';
export { Chardev } from './qmp/chardev.js';
export { type QmpAddress, QmpClient, QmpCommandError } from './qmp/client.js';
export { registerCharCommands } from './qmp/commands/char.js';
export { type ControlCommandsOptions, registerControlCommands } from './qmp/commands/control.js';
export { EventHub, type EventListener, type QmpEvent, type WallClock } from './qmp/events.js';
export { type JsonMessage, JsonStream, parseJson } from './qmp/json-stream.js';
export { type WritableJson, writeJson } from './qmp/json-writer.js';
export { Monitor, type MonitorOptions } from './qmp/monitor.js';
export {
  type CommandContext,
  type CommandHandler,
  CommandRegistry,
  type CommandSession,
} from './qmp/registry.js';
export { parseChardevOption } from './qmp/transport/chardev-option.js';
export {
  type BackendOptions,
  ChardevSet,
  type ChardevSetOptions,
} from './qmp/transport/chardev-set.js';
