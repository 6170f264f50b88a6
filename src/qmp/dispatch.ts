// SPDX-License-Identifier: MIT
/** A request through its steps: find the command, check the arguments, run it, form the reply. */
import type { JsonObject, JsonValue } from '../../protocol/qapi/types.js';
import { QapiInputError, validate } from '../../protocol/qapi/validate.js';
import { errorText } from '../base/error-text.js';
import { BlockError, ERROR_CODES, toError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { WritableJson } from './json-writer.js';
import type { CommandRegistry, CommandSession, RegisteredCommand } from './registry.js';

export interface DispatchOptions {
  readonly registry: CommandRegistry;
  readonly session: CommandSession;
  /** The client has switched on `oob`. */
  readonly oobEnabled: boolean;
  readonly logger: Logger;
}

export type Reply = { readonly [key: string]: WritableJson };

/** The command that ends the negotiation; until then there is no other. */
const NEGOTIATION_COMMAND = 'qmp_capabilities';

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function invalid(text: string): BlockError {
  return new BlockError('DF_INVALID', text);
}

/** True for a request that wants to run out of band. */
export function isOutOfBand(request: JsonValue): boolean {
  return isObject(request) && 'exec-oob' in request && !('execute' in request);
}

/** The command's name, after all members of the request were found to be in order. */
function checkRequest(request: JsonObject, oobEnabled: boolean): string {
  let name: string | undefined;
  let nameKey = '';
  for (const [key, value] of Object.entries(request)) {
    if (key === 'execute' || (key === 'exec-oob' && oobEnabled)) {
      if (typeof value !== 'string') throw invalid(`QMP input member '${key}' must be a string`);
      if (name !== undefined) {
        throw invalid(`QMP input member '${key}' clashes with '${nameKey}'`);
      }
      name = value;
      nameKey = key;
    } else if (key === 'arguments') {
      if (!isObject(value)) throw invalid("QMP input member 'arguments' must be an object");
    } else if (key !== 'id') {
      throw invalid(`QMP input member '${key}' is unexpected`);
    }
  }
  if (name === undefined) throw invalid("QMP input lacks member 'execute'");
  return name;
}

function findCommand(name: string, oob: boolean, options: DispatchOptions): RegisteredCommand {
  if (options.session.isNegotiating && name !== NEGOTIATION_COMMAND) {
    throw new BlockError(
      'DF_COMMAND_NOT_FOUND',
      `Expecting capabilities negotiation with '${NEGOTIATION_COMMAND}'`,
    );
  }
  const command = options.registry.get(name);
  if (command === undefined) {
    throw new BlockError('DF_COMMAND_NOT_FOUND', `The command ${name} has not been found`);
  }
  if (oob && !command.definition.oob) throw invalid(`The command ${name} does not support OOB`);
  return command;
}

async function run(request: JsonValue, options: DispatchOptions): Promise<WritableJson> {
  if (!isObject(request)) throw invalid('QMP input must be a JSON object');
  const name = checkRequest(request, options.oobEnabled);
  const command = findCommand(name, isOutOfBand(request), options);
  const args = validate(command.definition.arguments, request.arguments ?? {});
  const result = await command.run(args, { session: options.session });
  // The schema says whether there is a result; what a handler happens to return does not count.
  return command.definition.result === undefined ? {} : (result as WritableJson);
}

/** The reply that tells of an error. Errors nobody meant are logged; the client gets their text. */
export function errorReply(thrown: unknown, logger: Logger): Reply {
  const error = toError(thrown);
  const isExpected = error instanceof BlockError || error instanceof QapiInputError;
  if (!isExpected) logger.error({ event: 'qmp.unexpected-error', error }, 'a command failed');
  const errorClass = error instanceof BlockError ? ERROR_CODES[error.code].qmp : 'GenericError';
  return { error: { class: errorClass, desc: errorText(error) } };
}

/** Runs one request. Always gives a reply, never throws. */
export async function dispatch(request: JsonValue, options: DispatchOptions): Promise<Reply> {
  const id = isObject(request) && 'id' in request ? { id: request.id } : {};
  try {
    return { return: await run(request, options), ...id };
  } catch (error) {
    return { ...errorReply(error, options.logger), ...id };
  }
}
