// SPDX-License-Identifier: MIT
/** Commands with the code behind them. Only what the schema declares can be registered. */
import type {
  AnyType,
  CommandDefinition,
  Infer,
  ObjectType,
  ResultOf,
} from '../../protocol/qapi/types.js';
import type { MaybePromise } from '../base/maybe-promise.js';

/** The session that a command came from, as far as commands may see it. */
export interface CommandSession {
  /** True before `qmp_capabilities`, when no other command works. */
  readonly isNegotiating: boolean;
  /** Capabilities that the greeting offered. */
  readonly offered: readonly string[];
  /** Ends the negotiation with these capabilities switched on. */
  negotiate(enabled: readonly string[]): void;
}

export interface CommandContext {
  readonly session: CommandSession;
}

export type CommandHandler<C> =
  C extends CommandDefinition<infer A, infer _R>
    ? (args: Infer<A>, context: CommandContext) => MaybePromise<ResultOf<C>>
    : never;

/** A command as the dispatcher sees it: with checked arguments of some type. */
export interface RegisteredCommand {
  readonly definition: CommandDefinition;
  run(args: unknown, context: CommandContext): unknown;
}

export class CommandRegistry {
  readonly #declared: ReadonlySet<CommandDefinition>;
  readonly #commands = new Map<string, RegisteredCommand>();

  /** @param declared every command of the schema; no others can be registered */
  constructor(declared: readonly CommandDefinition[]) {
    this.#declared = new Set(declared);
  }

  /**
   * Puts code behind a command. The handler gets checked arguments with the names of the wire; what
   * it throws becomes the error of the reply.
   *
   * @throws {Error} the schema has no such command, or it has a handler already
   */
  register<const A extends ObjectType, const R extends AnyType | undefined>(
    definition: CommandDefinition<A, R>,
    handler: CommandHandler<CommandDefinition<A, R>>,
  ): void {
    const { name } = definition;
    if (!this.#declared.has(definition)) throw new Error(`${name} is not in the schema`);
    if (this.#commands.has(name)) throw new Error(`${name} has a handler already`);
    // The dispatcher checks arguments against this definition, which is where their type is from.
    const run = handler as (args: unknown, context: CommandContext) => unknown;
    this.#commands.set(name, { definition, run });
  }

  get(name: string): RegisteredCommand | undefined {
    return this.#commands.get(name);
  }

  /** Commands that have a handler, in the order of the schema. */
  definitions(): readonly CommandDefinition[] {
    return [...this.#declared].filter(({ name }) => this.#commands.has(name));
  }

  /** Names of declared commands without a handler; a daemon that is complete has none. */
  missing(): readonly string[] {
    return [...this.#declared].filter((d) => !this.#commands.has(d.name)).map((d) => d.name);
  }
}
