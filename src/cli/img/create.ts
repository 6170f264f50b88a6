// SPDX-License-Identifier: MIT
/** `diskferry img create`: makes an image. */
import { alignUp } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import { PROGRESS, parseImgArguments } from './arguments.js';
import { formatOptionsHelp, onlyOne, parseFormatOptions } from './format-options.js';
import { type Backing, backingOf, backingRequest, makeImage } from './new-image.js';
import { ImageSession } from './session.js';
import { parseSize, sizeText } from './sizes.js';

/** Sizes are rounded up to whole ones, as qemu-img does. */
const SECTOR = 512;

export async function create(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    quiet: PROGRESS.quiet,
    format: { type: 'string', short: 'f' },
    options: { type: 'string', short: 'o', multiple: true },
    'backing-file': { type: 'string', short: 'b' },
    'backing-format': { type: 'string', short: 'F' },
    unsafe: { type: 'boolean', short: 'u' },
    object: { type: 'string', multiple: true },
  });
  const { format = 'raw' } = values;
  const options = parseFormatOptions(values.options ?? []);
  if (options.help) {
    process.stdout.write(formatOptionsHelp(format));
    return 0;
  }
  const [name, sizeGiven, extra] = positionals;
  if (name === undefined) throw new BlockError('DF_INVALID', 'Expecting image file name');
  if (extra !== undefined) throw new BlockError('DF_INVALID', `Unexpected argument '${extra}'`);
  const backing = backingOf(
    onlyOne('-b', values['backing-file'], options.backingFile),
    onlyOne('-F', values['backing-format'], options.backingFormat),
  );
  if (sizeGiven !== undefined && options.size !== undefined) {
    throw new BlockError('DF_INVALID', 'The image size must be specified only once');
  }
  return ImageSession.run(values.object, async (session) => {
    const given = sizeGiven === undefined ? options.size : parseSize(sizeGiven, 'the size');
    const size = alignUp(given ?? (await sizeOfBacking(session, name, backing)), SECTOR);
    if (backing !== undefined && values.unsafe !== true) {
      await session.open({ ...backingRequest(name, backing), forceShare: true });
    }
    await makeImage(session, { name, format, size, options, backing });
    if (values.quiet !== true) {
      process.stdout.write(`made '${name}': ${format}, ${sizeText(size)} (${size} bytes)\n`);
    }
    return 0;
  });
}

async function sizeOfBacking(
  session: ImageSession,
  name: string,
  backing: Backing | undefined,
): Promise<number> {
  if (backing === undefined) throw new BlockError('DF_INVALID', 'Image creation needs a size');
  const image = await session.open({ ...backingRequest(name, backing), forceShare: true });
  return image.size;
}
