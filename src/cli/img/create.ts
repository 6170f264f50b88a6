// SPDX-License-Identifier: MIT
/** `diskferry img create`: makes an image. */
import { BlockError } from '../../base/errors.js';
import { PROGRESS, parseImgArguments } from './arguments.js';
import { type Backing, backingOf, backingRequest, makeImage } from './new-image.js';
import { ImageSession } from './session.js';
import { parseSize, sizeText } from './sizes.js';

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
  const [name, sizeGiven, extra] = positionals;
  if (name === undefined) throw new BlockError('DF_INVALID', 'Expecting image file name');
  if (extra !== undefined) throw new BlockError('DF_INVALID', `Unexpected argument '${extra}'`);
  const { format = 'raw' } = values;
  const backing = backingOf(values['backing-file'], values['backing-format']);
  return ImageSession.run(values.object, async (session) => {
    const size =
      sizeGiven !== undefined
        ? parseSize(sizeGiven, 'the size')
        : await sizeOfBacking(session, name, backing);
    if (backing !== undefined && values.unsafe !== true) {
      await session.open({ ...backingRequest(name, backing), forceShare: true });
    }
    await makeImage(session, { name, format, size, options: values.options ?? [], backing });
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
