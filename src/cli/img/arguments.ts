// SPDX-License-Identifier: MIT
/** Arguments of the `diskferry img` commands: qemu-img's letters and names. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { BlockError, toError } from '../../base/errors.js';

type OptionsConfig = NonNullable<ParseArgsConfig['options']>;

/** Options that most commands have. */
export const COMMON = {
  object: { type: 'string', multiple: true },
  'image-opts': { type: 'boolean' },
  format: { type: 'string', short: 'f' },
  'force-share': { type: 'boolean', short: 'U' },
} as const satisfies OptionsConfig;

export const OUTPUT = { output: { type: 'string' } } as const satisfies OptionsConfig;
export const PROGRESS = {
  progress: { type: 'boolean', short: 'p' },
  quiet: { type: 'boolean', short: 'q' },
} as const satisfies OptionsConfig;

type ValuesOf<T extends OptionsConfig> = ReturnType<
  typeof parseArgs<{ options: T; allowPositionals: true; strict: true }>
>['values'];

/** @throws BlockError DF_INVALID for an option that there is not, or one without its value */
export function parseImgArguments<const T extends OptionsConfig>(
  args: string[],
  options: T,
): {
  values: ValuesOf<T>;
  positionals: string[];
  /** The options as they came, for commands where their order counts. */
  given: { readonly name: string; readonly value: string | undefined }[];
} {
  try {
    const settings = { args, options, allowPositionals: true, strict: true } as const;
    const { values, positionals } = parseArgs(settings);
    const { tokens } = parseArgs({ ...settings, tokens: true });
    const given = tokens.flatMap((token) =>
      token.kind === 'option' ? [{ name: token.name as string, value: token.value }] : [],
    );
    return { values, positionals, given };
  } catch (error) {
    const [text] = toError(error).message.split('. ');
    throw new BlockError('DF_INVALID', text ?? 'wrong arguments');
  }
}

/** @throws BlockError DF_INVALID unless there are as many words as names */
export function wordsFor(words: readonly string[], ...names: readonly string[]): string[] {
  const missing = names[words.length];
  if (missing !== undefined) throw new BlockError('DF_INVALID', `Expecting ${missing}`);
  const extra = words[names.length];
  if (extra !== undefined) throw new BlockError('DF_INVALID', `Unexpected argument '${extra}'`);
  return [...words];
}

/** @throws BlockError DF_INVALID for anything but human and json */
export function wantsJson(output: string | undefined): boolean {
  if (output === undefined || output === 'human') return false;
  if (output === 'json') return true;
  throw new BlockError('DF_INVALID', `--output must be used with human or json as argument.`);
}
