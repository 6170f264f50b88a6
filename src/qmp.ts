// SPDX-License-Identifier: MIT
/** The library entry `diskferry/qmp`: the schema's words, and a monitor to serve commands with. */
export * from '../protocol/qapi/define.js';
export { schemaInfo } from '../protocol/qapi/schema-info.js';
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
