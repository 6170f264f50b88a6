// SPDX-License-Identifier: MIT
/** `diskferry img measure`: how large an image would be. */

import { alignUp } from '../../base/byte-range.js';
import { BlockError } from '../../base/errors.js';
import type { BlockBackend } from '../../block/backend.js';
import type { ImageMeasure } from '../../block/block-driver.js';
import { COMMON, OUTPUT, parseImgArguments, wantsJson } from './arguments.js';
import { type FormatOptions, formatOptionsHelp, parseFormatOptions } from './format-options.js';
import { newImageOptions } from './new-image.js';
import { ImageSession } from './session.js';
import { parseSize } from './sizes.js';
import { showSnapshot } from './source-snapshot.js';

/** Files are counted in these, bytes. */
const SECTOR = 512;

export async function measure(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...OUTPUT,
    'output-format': { type: 'string', short: 'O' },
    options: { type: 'string', short: 'o', multiple: true },
    snapshot: { type: 'string', short: 'l' },
    size: { type: 'string' },
  });
  const options = parseFormatOptions(values.options ?? []);
  if (options.help) {
    process.stdout.write(formatOptionsHelp(values['output-format'] ?? 'raw'));
    return 0;
  }
  const [name, extra] = positionals;
  if (extra !== undefined) throw wrong('At most one filename argument is allowed.');
  const json = wantsJson(values.output);
  const { format, snapshot, 'image-opts': imageOpts } = values;
  if (name === undefined && (imageOpts === true || (format ?? snapshot) !== undefined)) {
    throw wrong('--image-opts, -f, and -l require a filename argument.');
  }
  if (name !== undefined && values.size !== undefined) {
    throw wrong('--size N cannot be used together with a filename.');
  }
  if (name === undefined && values.size === undefined) {
    throw wrong('Either --size N or one filename must be specified.');
  }
  const given = values.size === undefined ? undefined : parseSize(values.size, '--size');
  return ImageSession.run(values.object, async (session) => {
    let source: BlockBackend | undefined;
    if (name !== undefined) {
      const forceShare = values['force-share'];
      source = await session.open({ name, format, imageOpts, forceShare });
      if (snapshot !== undefined) await showSnapshot(source, snapshot);
    }
    const size = alignUp(source?.size ?? given ?? 0, SECTOR);
    const wanted = {
      format: values['output-format'] ?? 'raw',
      size,
      options,
    };
    process.stdout.write(text(await measured(session, wanted, source), { json }));
    return 0;
  });
}

async function measured(
  session: ImageSession,
  wanted: { readonly format: string; readonly size: number; readonly options: FormatOptions },
  source: BlockBackend | undefined,
): Promise<ImageMeasure> {
  const { format, size } = wanted;
  const { drivers } = session.graph;
  const driver = format === 'raw' ? 'file' : format;
  if (!drivers.names.includes(driver)) throw wrong(`Unknown file format '${format}'`);
  const { create } = drivers.get(driver);
  if (create === undefined) {
    throw wrong(`Format driver '${format}' does not support image creation`);
  }
  const place = driver === 'file' ? { filename: '' } : { file: '' };
  const options = newImageOptions({ ...wanted, driver, place });
  return create.measure?.(options, source) ?? { required: size, fullyAllocated: size };
}

function text(
  { required, fullyAllocated, bitmaps }: ImageMeasure,
  { json }: { readonly json: boolean },
): string {
  if (json) {
    const all = { required, 'fully-allocated': fullyAllocated, bitmaps };
    return `${JSON.stringify(all, undefined, 4)}\n`;
  }
  const more = bitmaps === undefined ? '' : `bitmaps size: ${bitmaps}\n`;
  return `required size: ${required}\nfully allocated size: ${fullyAllocated}\n${more}`;
}

const wrong = (message: string): BlockError => new BlockError('DF_INVALID', message);
