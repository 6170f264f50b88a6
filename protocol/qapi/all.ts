// SPDX-License-Identifier: MIT
/** Every command and event that there is. A command that is missing here can't be registered. */
import { CHAR_COMMANDS } from './char.js';
import { CONTROL_COMMANDS } from './control.js';
import { INTROSPECT_COMMANDS } from './introspect.js';
import type { CommandDefinition, EventDefinition } from './types.js';

export const QAPI_COMMANDS: readonly CommandDefinition[] = [
  ...CONTROL_COMMANDS,
  ...INTROSPECT_COMMANDS,
  ...CHAR_COMMANDS,
];

export const QAPI_EVENTS: readonly EventDefinition[] = [];
