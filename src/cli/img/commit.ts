// SPDX-License-Identifier: MIT
/** `diskferry img commit`: what an image has goes down into its backing file. */
import { BlockError } from '../../base/errors.js';
import type { BlockBackend } from '../../block/backend.js';
import { STATUS_ZERO } from '../../block/block-driver.js';
import { chainDownTo, chainNext, findBackingByFilename, skipFilters } from '../../block/chain.js';
import { COMMON, PROGRESS, parseImgArguments, wordsFor } from './arguments.js';
import { copyImage } from './copy-image.js';
import type { CopySource } from './copy-source.js';
import { withProgress } from './progress.js';
import { type CacheMode, cacheMode, type ImageRequest, ImageSession } from './session.js';
import { parseSize } from './sizes.js';

const SPARSE_LENGTH = 4096;

export async function commit(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    object: COMMON.object,
    'image-opts': COMMON['image-opts'],
    format: COMMON.format,
    ...PROGRESS,
    base: { type: 'string', short: 'b' },
    drop: { type: 'boolean', short: 'd' },
    cache: { type: 'string', short: 't' },
    'rate-limit': { type: 'string', short: 'r' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const speed = values['rate-limit'] === undefined ? 0 : parseSize(values['rate-limit'], '-r');
  const cache = cacheMode(values.cache ?? 'writeback');
  const image: ImageRequest = { name, format: values.format, imageOpts: values['image-opts'] };
  const below = await ImageSession.run(values.object, (session) =>
    chainOf(session, image, values.base),
  );
  await ImageSession.run(values.object, async (session) => {
    const apart = await openApart(session, { image, below, cache });
    await withProgress('commit', values, (progress) => commitInto(apart, { speed, progress }));
    // Layers that stay between would show through an image that has been emptied.
    const keeps = values.drop === true || values.base !== undefined;
    if (!keeps) await emptied(apart.layers[0]);
  });
  if (values.quiet !== true) process.stdout.write('Image committed.\n');
  return 0;
}

/** Copies what the layers have into the base, which becomes as long as the image at least. */
async function commitInto(
  { layers, base }: Apart,
  how: Pick<Parameters<typeof copyImage>[0], 'speed' | 'progress'>,
): Promise<void> {
  const { size } = layers[0];
  if (size > base.size) await base.root.truncate(size, { exact: false, preallocation: 'off' });
  await copyImage({
    source: layered(layers, base),
    target: base,
    targetIsZero: false,
    sparseLength: SPARSE_LENGTH,
    wants: ({ depth }) => depth > 0,
    ...how,
  });
}

/** Layers below the image, the base last. */
async function chainOf(
  session: ImageSession,
  request: ImageRequest,
  baseName: string | undefined,
): Promise<ImageRequest[]> {
  const { node } = (await session.open(request)).root;
  const top = skipFilters(node);
  const next = chainNext(top);
  if (next === undefined) throw wrong('Image does not have a backing file');
  const base = baseName === undefined ? next : await findBackingByFilename(node, baseName);
  if (base === undefined) {
    throw wrong(`Did not find '${baseName}' in the backing chain of '${request.name}'`);
  }
  const nodes = chainDownTo(next, skipFilters(base)) ?? [];
  return nodes
    .filter(({ kind }) => kind !== 'filter')
    .map(({ driver }) => ({ name: driver.filename, format: driver.name }));
}

interface Apart {
  /** Without what lies below them; the image first. */
  readonly layers: readonly [BlockBackend, ...BlockBackend[]];
  readonly base: BlockBackend;
}

/** In one chain nobody could write to the base. */
async function openApart(
  session: ImageSession,
  {
    image,
    below,
    cache,
  }: {
    readonly image: ImageRequest;
    readonly below: readonly ImageRequest[];
    readonly cache: CacheMode;
  },
): Promise<Apart> {
  const last = below.at(-1);
  if (last === undefined) throw wrong('Image does not have a backing file');
  const layers: [BlockBackend, ...BlockBackend[]] = [
    await session.open({ ...image, noBacking: true, writable: true, cache }),
  ];
  for (const layer of below.slice(0, -1)) {
    layers.push(await session.open({ ...layer, noBacking: true }));
  }
  return { layers, base: await session.open({ ...last, writable: true, cache }) };
}

/** The layers as one image; the depth of an extent that none of them has is 0. */
function layered(layers: Apart['layers'], base: BlockBackend): CopySource {
  const [top] = layers;
  const statusAt = async (offset: number, most: number) => {
    let length = most;
    for (const layer of layers) {
      // Behind its end a layer is zero, whatever those below it have.
      if (offset >= layer.size) return { length, flags: STATUS_ZERO, depth: 1, layer: undefined };
      length = Math.min(length, layer.size - offset);
      const extent = await layer.blockStatus(offset, length);
      length = extent.length;
      if (extent.depth > 0) return { length, flags: extent.flags, depth: 1, layer };
    }
    const left = Math.max(base.size - offset, 0);
    if (left === 0) return { length, flags: STATUS_ZERO, depth: 0, layer: undefined };
    return { length: Math.min(length, left), flags: 0, depth: 0, layer: base };
  };
  return {
    size: top.size,
    blockStatus: statusAt,
    async read(offset, buffer) {
      for (let at = 0; at < buffer.byteLength; ) {
        const { length, flags, layer } = await statusAt(offset + at, buffer.byteLength - at);
        const part = buffer.subarray(at, at + length);
        if (layer === undefined || (flags & STATUS_ZERO) !== 0) part.fill(0);
        else await layer.read(offset + at, part);
        at += length;
      }
    },
  };
}

async function emptied(image: BlockBackend): Promise<void> {
  const { driver } = skipFilters(image.root.node);
  if (driver.makeEmpty === undefined) {
    throw wrong(`Could not empty ${driver.filename}: the format '${driver.name}' can't do that`);
  }
  await driver.makeEmpty();
  await image.flush();
}

const wrong = (message: string): BlockError => new BlockError('DF_INVALID', message);
