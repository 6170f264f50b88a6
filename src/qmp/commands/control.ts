// SPDX-License-Identifier: MIT
/** Commands of the monitor itself, and the schema. */
import {
  QMP_CAPABILITIES,
  QUERY_COMMANDS,
  QUERY_VERSION,
  QUIT,
  type VersionInfo,
} from '../../../protocol/qapi/control.js';
import { QUERY_QMP_SCHEMA } from '../../../protocol/qapi/introspect.js';
import { schemaInfo } from '../../../protocol/qapi/schema-info.js';
import type { EventDefinition, Output } from '../../../protocol/qapi/types.js';
import { BlockError } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type { CommandRegistry } from '../registry.js';

export interface ControlCommandsOptions {
  readonly version: Output<typeof VersionInfo>;
  /** Every event that may be sent, for the schema. */
  readonly events: readonly EventDefinition[];
  /**
   * Ends jobs and exports, with their events, and begins the end of the process. The command is
   * answered when it resolves; closing the character devices waits for that.
   */
  readonly quit: () => MaybePromise<void>;
}

export function registerControlCommands(
  registry: CommandRegistry,
  options: ControlCommandsOptions,
): void {
  let schema: Output<(typeof QUERY_QMP_SCHEMA)['result']> | undefined;

  registry.register(QMP_CAPABILITIES, ({ enable = [] }, { session }) => {
    if (!session.isNegotiating) {
      throw new BlockError(
        'DF_COMMAND_NOT_FOUND',
        'Capabilities negotiation is already complete, command ignored',
      );
    }
    const missing = enable.filter((name) => !session.offered.includes(name));
    if (missing.length > 0) {
      throw new BlockError('DF_INVALID', `Capability ${missing.join(', ')} not available`);
    }
    session.negotiate(enable);
  });
  registry.register(QUERY_VERSION, () => options.version);
  registry.register(QUERY_COMMANDS, () => registry.definitions().map(({ name }) => ({ name })));
  registry.register(QUERY_QMP_SCHEMA, () => {
    schema ??= schemaInfo(registry.definitions(), options.events);
    return schema;
  });
  registry.register(QUIT, () => options.quit());
}
