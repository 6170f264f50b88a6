// SPDX-License-Identifier: MIT
/** `diskferry img resize`: gives an image another size. */
import { BlockError } from '../../base/errors.js';
import type { PreallocationMode } from '../../block/block-driver.js';
import { COMMON, PROGRESS, parseImgArguments, wordsFor } from './arguments.js';
import { ImageSession } from './session.js';
import { parseSize } from './sizes.js';

const PREALLOCATIONS: readonly string[] = ['off', 'metadata', 'falloc', 'full'];

export async function resize(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(separateSize(args), {
    ...COMMON,
    quiet: PROGRESS.quiet,
    preallocation: { type: 'string' },
    shrink: { type: 'boolean' },
  });
  const [name = '', text = ''] = wordsFor(positionals, 'image file name', 'size');
  const preallocation = parsePreallocation(values.preallocation ?? 'off');
  return ImageSession.run(values.object, async (session) => {
    const image = await session.open({
      name,
      writable: true,
      format: values.format,
      imageOpts: values['image-opts'],
    });
    const size = newSize(image.size, text);
    if (size < image.size && values.shrink !== true) {
      throw new BlockError(
        'DF_INVALID',
        'Use the --shrink option to perform a shrink operation: all data beyond the new end is lost.',
      );
    }
    if (size <= image.size && preallocation !== 'off') {
      throw new BlockError('DF_INVALID', 'Preallocation can only be used for growing images');
    }
    await image.root.truncate(size, { exact: true, preallocation });
    await image.flush();
    if (values.quiet !== true) process.stdout.write('Image resized.\n');
    return 0;
  });
}

/** A size such as -1G looks like an option: everything after `--` is none. */
function separateSize(args: string[]): string[] {
  const last = args.at(-1) ?? '';
  if (args.includes('--')) return args;
  return /^-\d/.test(last) ? [...args.slice(0, -1), '--', last] : args;
}

function newSize(size: number, text: string): number {
  const sign = /^[+-]/.exec(text)?.[0];
  const given = parseSize(sign === undefined ? text : text.slice(1), 'the size');
  const relative = sign === '+' ? size + given : size - given;
  const result = sign === undefined ? given : relative;
  if (result <= 0) throw new BlockError('DF_INVALID', 'New image size must be positive');
  return result;
}

function parsePreallocation(text: string): PreallocationMode {
  if (PREALLOCATIONS.includes(text)) return text as PreallocationMode;
  throw new BlockError('DF_INVALID', `Invalid preallocation mode '${text}'`);
}
