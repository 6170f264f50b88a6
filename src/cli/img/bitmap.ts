// SPDX-License-Identifier: MIT
/** `diskferry img bitmap`: makes, changes and removes persistent bitmaps of an image. */
import { BlockError } from '../../base/errors.js';
import {
  addingBitmap,
  clearingBitmap,
  mergingBitmaps,
  removingBitmap,
  switchingBitmap,
} from '../../block/bitmap/bitmap-changes.js';
import type { BlockGraph } from '../../block/graph.js';
import { applyChanges, type Change } from '../../block/transaction.js';
import { COMMON, parseImgArguments } from './arguments.js';
import { ImageSession } from './session.js';
import { parseSize } from './sizes.js';

const OPTIONS = {
  object: COMMON.object,
  'image-opts': COMMON['image-opts'],
  format: COMMON.format,
  add: { type: 'boolean' },
  remove: { type: 'boolean' },
  clear: { type: 'boolean' },
  enable: { type: 'boolean' },
  disable: { type: 'boolean' },
  merge: { type: 'string', multiple: true },
  granularity: { type: 'string', short: 'g' },
  'source-file': { type: 'string', short: 'b' },
  'source-format': { type: 'string', short: 'F' },
} as const;

/** Names the bitmap, and where those that are merged into it come from. */
interface Subject {
  readonly node: string;
  readonly name: string;
  readonly source: string;
  readonly granularity: number | undefined;
}

type Action = (graph: BlockGraph, subject: Subject, value: string) => Change;

const ACTIONS: Readonly<Record<string, Action>> = {
  add: (graph, { node, name, granularity }) =>
    addingBitmap(graph, {
      ...{ node, name, persistent: true },
      ...(granularity === undefined ? {} : { granularity }),
    }),
  remove: (graph, subject) => removingBitmap(graph, subject),
  clear: (graph, subject) => clearingBitmap(graph, subject),
  enable: (graph, subject) => switchingBitmap(graph, subject, 'enabled'),
  disable: (graph, subject) => switchingBitmap(graph, subject, 'disabled'),
  merge: (graph, { node, name, source }, value) =>
    mergingBitmaps(graph, { node, target: name, sources: [{ node: source, name: value }] }),
};

export async function bitmap(args: string[]): Promise<number> {
  const { values, positionals, given } = parseImgArguments(args, OPTIONS);
  const actions = given.filter(({ name }) => Object.hasOwn(ACTIONS, name));
  const granularity = checkedGranularity(values, actions.length);
  const [filename, name] = positionals;
  if (filename === undefined || name === undefined || positionals.length !== 2) {
    throw invalid('Expecting filename and bitmap name');
  }
  return ImageSession.run(values.object, async (session) => {
    const image = await session.open({
      ...{ name: filename, writable: true, noBacking: true },
      ...{ format: values.format, imageOpts: values['image-opts'] },
    });
    const sourceName = values['source-file'];
    const source =
      sourceName === undefined
        ? image
        : await session.open({
            ...{ name: sourceName, noBacking: true, format: values['source-format'] },
          });
    const subject = {
      ...{ node: image.root.node.name, name, granularity },
      source: source.root.node.name,
    };
    for (const action of actions) {
      try {
        const change = ACTIONS[action.name]?.(session.graph, subject, action.value ?? '');
        if (change !== undefined) await applyChanges([change]);
      } catch (cause) {
        const text = `Operation ${action.name} on bitmap ${name} failed`;
        throw new BlockError('DF_INVALID', text, {}, { cause });
      }
    }
    return 0;
  });
}

/** @throws BlockError DF_INVALID, in QEMU's words, for options that do not go together */
function checkedGranularity(
  values: ReturnType<typeof parseImgArguments<typeof OPTIONS>>['values'],
  actions: number,
): number | undefined {
  if (actions === 0) {
    throw invalid('Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
  }
  const { granularity } = values;
  if (granularity !== undefined && values.add !== true) {
    throw invalid('granularity only supported with --add');
  }
  if (values['source-format'] !== undefined && values['source-file'] === undefined) {
    throw invalid('-F only supported with -b');
  }
  if (values['source-file'] !== undefined && values.merge === undefined) {
    throw invalid('Merge bitmap source file only supported with --merge');
  }
  return granularity === undefined ? undefined : parseSize(granularity, '-g');
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
