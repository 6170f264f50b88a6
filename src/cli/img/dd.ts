// SPDX-License-Identifier: MIT
/** `diskferry img dd`: copies a part of an image, counted in blocks. */
import { BlockError } from '../../base/errors.js';
import { COMMON, parseImgArguments } from './arguments.js';
import { copyImage } from './copy-image.js';
import { parseFormatOptions } from './format-options.js';
import { makeImage } from './new-image.js';
import { cacheMode, ImageSession } from './session.js';
import { parseSize } from './sizes.js';

const KEYS = ['if', 'of', 'bs', 'count', 'skip'];
const BLOCK_DEFAULT = '512';
const SPARSE_LENGTH = 4096;

export async function dd(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    'image-opts': COMMON['image-opts'],
    'force-share': COMMON['force-share'],
    format: COMMON.format,
    object: { type: 'string', multiple: true },
    'output-format': { type: 'string', short: 'O' },
  });
  const words = parseWords(positionals);
  const { 'output-format': format = 'raw' } = values;
  const input = words.get('if');
  const output = words.get('of');
  if (input === undefined || output === undefined) {
    throw new BlockError('DF_INVALID', 'Must specify both input and output file names');
  }
  const block = parseSize(words.get('bs') ?? BLOCK_DEFAULT, 'bs');
  if (block === 0) throw new BlockError('DF_INVALID', 'Invalid number: bs is zero');
  const skip = parseCount(words.get('skip') ?? '0', 'skip') * block;
  const count = words.get('count');
  const most = count === undefined ? undefined : parseCount(count, 'count') * block;
  return ImageSession.run(values.object, async (session) => {
    const source = await session.open({
      name: input,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
    });
    // As qemu-img counts: `count` blocks from the start of the input, of which `skip` are left out.
    const end = Math.min(source.size, most ?? source.size);
    const length = Math.max(0, end - skip);
    if (skip > end) {
      process.stderr.write(`diskferry: ${input}: cannot skip to specified offset\n`);
    }
    await makeImage(session, {
      name: output,
      format,
      size: length,
      options: parseFormatOptions([]),
    });
    const cache = cacheMode('writeback');
    const target = await session.open({ name: output, format, writable: true, cache });
    const targetIsZero = target.root.node.driver.newIsArbitrary !== true;
    const how = { offset: skip, length, targetIsZero, sparseLength: SPARSE_LENGTH };
    if (length > 0) await copyImage({ source, target, ...how });
    return 0;
  });
}

/** `key=value`, in any order. @throws BlockError DF_INVALID for a key that there is not */
function parseWords(words: readonly string[]): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const word of words) {
    const at = word.indexOf('=');
    const key = word.slice(0, Math.max(at, 0));
    if (!KEYS.includes(key)) throw new BlockError('DF_INVALID', `Unrecognized operand '${word}'`);
    found.set(key, word.slice(at + 1));
  }
  return found;
}

function parseCount(text: string, what: string): number {
  return parseSize(text, what);
}
