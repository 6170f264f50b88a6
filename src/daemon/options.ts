// SPDX-License-Identifier: MIT
/**
 * The command line of diskferryd: that of qemu-storage-daemon, so that scripts which start the one
 * can start the other. Options that make something keep their order: what an option refers to has to
 * come before it.
 */
import { BlockdevOptions } from '../../protocol/qapi/block-core-options.js';
import { BlockExportOptions, NbdServerOptions } from '../../protocol/qapi/block-export.js';
import { MonitorOptions } from '../../protocol/qapi/control.js';
import type { Infer } from '../../protocol/qapi/define.js';
import { ObjectOptions } from '../../protocol/qapi/qom.js';
import type { ObjectType } from '../../protocol/qapi/types.js';
import { errorText } from '../base/error-text.js';
import { BlockError, toError } from '../base/errors.js';
import { isLogLevel, LOG_LEVELS, type LogLevel } from '../base/log.js';
import { parseChardevOption } from '../qmp/transport/chardev-option.js';
import type { BackendOptions } from '../qmp/transport/chardev-set.js';
import { chardevHelp } from './chardev-help.js';
import { type Argument, type OptionTable, splitArguments } from './getopt.js';
import { HELP_TEXT } from './help.js';
import { parseKeyval } from './keyval.js';
import { optionHelp } from './option-help.js';
import { parseOption } from './schema-option.js';

/** One thing to be made, in the order of the command line. */
export type OptionAction = (
  | { readonly kind: 'blockdev'; readonly options: Infer<typeof BlockdevOptions> }
  | { readonly kind: 'chardev'; readonly id: string; readonly backend: BackendOptions }
  | { readonly kind: 'export'; readonly options: Infer<typeof BlockExportOptions> }
  | { readonly kind: 'monitor'; readonly options: Infer<typeof MonitorOptions> }
  | { readonly kind: 'nbd-server'; readonly options: Infer<typeof NbdServerOptions> }
  | { readonly kind: 'object'; readonly options: Infer<typeof ObjectOptions> }
) & {
  /** The option as it was given, to put in front of an error: `--blockdev driver=file,...`. */
  readonly place: string;
};

export interface DaemonOptions {
  readonly daemonize: boolean;
  /** Path as given; relative to the directory in which we were started. */
  readonly pidfile?: string;
  readonly logLevel: LogLevel;
  readonly actions: readonly OptionAction[];
}

/** Either something to print, with success, or a daemon to run. */
export type CommandLine =
  | { readonly kind: 'print'; readonly text: string }
  | { readonly kind: 'run'; readonly options: DaemonOptions };

const OPTIONS: OptionTable = {
  blockdev: { argument: true },
  chardev: { argument: true },
  daemonize: { argument: false },
  export: { argument: true },
  help: { argument: false, short: 'h' },
  'log-level': { argument: true },
  monitor: { argument: true },
  'nbd-server': { argument: true },
  object: { argument: true },
  pidfile: { argument: true },
  trace: { argument: true, short: 'T' },
  version: { argument: false, short: 'V' },
};

/** Options that tell what there is: their type, the key that may be left out, a word for headings. */
const HELPED: Readonly<
  Record<string, { type: ObjectType; impliedKey?: string; what: string } | undefined>
> = {
  blockdev: { type: BlockdevOptions, impliedKey: 'driver', what: 'block driver' },
  export: { type: BlockExportOptions, impliedKey: 'type', what: 'export type' },
  monitor: { type: MonitorOptions, impliedKey: 'chardev', what: 'monitor' },
  'nbd-server': { type: NbdServerOptions, what: 'nbd-server' },
  object: { type: ObjectOptions, impliedKey: 'qom-type', what: 'user creatable object' },
};

/**
 * Parses and checks all arguments before anything is made.
 * @param args what follows the script's name
 * @param versionText what `--version` prints
 * @throws BlockError DF_INVALID; the message is one line that starts with the option at fault
 */
export function parseCommandLine(args: readonly string[], versionText: string): CommandLine {
  const given = splitArguments(args, OPTIONS);
  const actions: OptionAction[] = [];
  let daemonize = false;
  let pidfile: string | undefined;
  let logLevel: LogLevel = 'info';
  // As qemu-storage-daemon: these count wherever they stand, before anything else is looked at.
  for (const { name } of given) {
    if (name === 'help') return { kind: 'print', text: HELP_TEXT };
    if (name === 'version') return { kind: 'print', text: versionText };
  }
  for (const argument of given.map(withoutSecret)) {
    try {
      if (argument.name === 'daemonize') daemonize = true;
      else if (argument.name === 'pidfile') pidfile = argument.value;
      else if (argument.name === 'log-level') logLevel = parseLogLevel(argument.value);
      else {
        const text = helpOf(argument);
        if (text !== undefined) return { kind: 'print', text };
        actions.push(parseAction(argument));
      }
    } catch (error) {
      throw new BlockError('DF_INVALID', `${argument.place}: ${errorText(toError(error))}`, {});
    }
  }
  if (daemonize) refuseStdio(actions);
  return {
    kind: 'run',
    options: { daemonize, logLevel, actions, ...(pidfile !== undefined ? { pidfile } : {}) },
  };
}

function parseAction({ name, value, place }: Argument): OptionAction {
  switch (name) {
    case 'blockdev':
      return { kind: 'blockdev', place, options: parseOption(BlockdevOptions, value, 'driver') };
    case 'chardev':
      return { kind: 'chardev', place, ...parseChardevOption(value) };
    case 'export':
      return { kind: 'export', place, options: parseOption(BlockExportOptions, value, 'type') };
    case 'monitor':
      return { kind: 'monitor', place, options: parseOption(MonitorOptions, value, 'chardev') };
    case 'nbd-server':
      return { kind: 'nbd-server', place, options: parseOption(NbdServerOptions, value) };
    case 'object':
      return { kind: 'object', place, options: parseOption(ObjectOptions, value, 'qom-type') };
    default:
      throw new BlockError(
        'DF_INVALID',
        'diskferryd has no trace points; use --log-level trace to see what it does',
      );
  }
}

/** What stands in front of errors, which end in logs, must not have a secret in it. */
function withoutSecret(argument: Argument): Argument {
  const { name, value } = argument;
  if (name !== 'object' || !value.includes('secret')) return argument;
  return { ...argument, place: '--object secret,...' };
}

function parseLogLevel(text: string): LogLevel {
  if (isLogLevel(text)) return text;
  const choices = LOG_LEVELS.join(', ');
  throw new BlockError('DF_INVALID', `'${text}' is no log level; there are ${choices}`);
}

/** The text that an option with `help` in its value asks for. @throws BlockError DF_INVALID */
function helpOf({ name, value }: Argument): string | undefined {
  const helped = Object.hasOwn(HELPED, name) ? HELPED[name] : undefined;
  if (name === 'chardev') return chardevHelp(value);
  if (helped === undefined || value.startsWith('{')) return undefined;
  const { type, impliedKey, what } = helped;
  const { tree, help } = parseKeyval(value, impliedKey === undefined ? {} : { impliedKey });
  return help ? optionHelp(type, tree, what) : undefined;
}

/** A daemon in the background has no stdin or stdout that anybody could use. */
function refuseStdio(actions: readonly OptionAction[]): void {
  for (const action of actions) {
    if (action.kind === 'chardev' && action.backend.type === 'stdio') {
      throw new BlockError('DF_INVALID', `${action.place}: cannot use stdio with -daemonize`);
    }
  }
}

/**
 * Descriptors that options name by number, for a start in the background: they have to be passed on.
 * Names that are no number are names of sockets from a service manager.
 */
export function descriptorsOf(actions: readonly OptionAction[]): number[] {
  const found = new Set<number>();
  const visit = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    const entry = value as { type?: unknown; str?: unknown; data?: { str?: unknown } };
    const text = entry.str ?? entry.data?.str;
    if (entry.type === 'fd' && typeof text === 'string' && /^[0-9]{1,6}$/.test(text)) {
      found.add(Number(text));
    }
    for (const child of Object.values(value)) visit(child);
  };
  for (const action of actions) visit(action);
  return [...found].filter((fd) => fd > 2).sort((a, b) => a - b);
}
