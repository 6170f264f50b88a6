// SPDX-License-Identifier: MIT
/** Every command and event that there is. A command that is missing here can't be registered. */
import { BACKUP_COMMANDS } from './backup.js';
import { BITMAP_COMMANDS } from './bitmaps.js';
import { BLOCK_CORE_COMMANDS, BLOCK_CORE_EVENTS } from './block-core.js';
import { BLOCK_CREATE_COMMANDS } from './block-create.js';
import { BLOCK_EXPORT_COMMANDS, BLOCK_EXPORT_EVENTS } from './block-export.js';
import { BLOCK_JOB_COMMANDS, BLOCK_JOB_EVENTS } from './block-job.js';
import { CHAIN_COMMANDS } from './chain.js';
import { CHAR_COMMANDS } from './char.js';
import { CONTROL_COMMANDS } from './control.js';
import { INTROSPECT_COMMANDS } from './introspect.js';
import { JOB_COMMANDS, JOB_EVENTS } from './job.js';
import { QOM_COMMANDS } from './qom.js';
import { REPLACE_COMMANDS } from './replace.js';
import { RUN_STATE_COMMANDS, RUN_STATE_EVENTS } from './run-state.js';
import { TRANSACTION_COMMANDS } from './transaction.js';
import type { CommandDefinition, EventDefinition } from './types.js';

export const QAPI_COMMANDS: readonly CommandDefinition[] = [
  ...CONTROL_COMMANDS,
  ...INTROSPECT_COMMANDS,
  ...CHAR_COMMANDS,
  ...RUN_STATE_COMMANDS,
  ...BLOCK_CORE_COMMANDS,
  ...REPLACE_COMMANDS,
  ...BLOCK_CREATE_COMMANDS,
  ...BITMAP_COMMANDS,
  ...BLOCK_EXPORT_COMMANDS,
  ...JOB_COMMANDS,
  ...BLOCK_JOB_COMMANDS,
  ...BACKUP_COMMANDS,
  ...CHAIN_COMMANDS,
  ...TRANSACTION_COMMANDS,
  ...QOM_COMMANDS,
];

export const QAPI_EVENTS: readonly EventDefinition[] = [
  ...RUN_STATE_EVENTS,
  ...BLOCK_CORE_EVENTS,
  ...BLOCK_EXPORT_EVENTS,
  ...JOB_EVENTS,
  ...BLOCK_JOB_EVENTS,
];
