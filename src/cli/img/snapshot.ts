// SPDX-License-Identifier: MIT
/** `diskferry img snapshot`: snapshots inside an image. */
import { BlockError } from '../../base/errors.js';
import type { InternalSnapshots } from '../../block/block-driver.js';
import { describeSnapshot } from '../../qmp/commands/describe-node.js';
import { COMMON, parseImgArguments, wordsFor } from './arguments.js';
import { ImageSession } from './session.js';
import { snapshotTable } from './snapshot-table.js';

type Action = (snapshots: InternalSnapshots) => Promise<void>;

export async function snapshot(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    quiet: { type: 'boolean', short: 'q' },
    list: { type: 'boolean', short: 'l' },
    create: { type: 'string', short: 'c' },
    apply: { type: 'string', short: 'a' },
    delete: { type: 'string', short: 'd' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const actions: Action[] = [
    ...(values.list === true ? [list] : []),
    ...(values.create !== undefined ? [create(values.create)] : []),
    ...(values.apply !== undefined ? [apply(values.apply)] : []),
    ...(values.delete !== undefined ? [remove(values.delete)] : []),
  ];
  if (actions.length > 1) {
    throw new BlockError('DF_INVALID', "Cannot mix '-l', '-a', '-c', '-d'");
  }
  const [action = list] = actions;
  return ImageSession.run(values.object, async (session) => {
    const image = await session.open({
      name,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
      writable: action !== list,
    });
    const { driver } = image.root.node;
    if (driver.snapshots === undefined) {
      // As qemu-img: nothing to list is no failure.
      if (action === list) return 0;
      const message = `The format '${driver.name}' has no snapshots inside its images`;
      throw new BlockError('DF_NOT_SUPPORTED', message);
    }
    await action(driver.snapshots);
    return 0;
  });
}

const list: Action = async (snapshots) => {
  const found = await snapshots.list();
  if (found.length === 0) return;
  process.stdout.write(`${snapshotTable(found.map(describeSnapshot)).join('\n')}\n`);
};

/** Longest name, bytes: QEMU cuts longer ones off. */
const NAME_BYTES_MAX = 255;

function create(name: string): Action {
  return async (snapshots) => {
    if (Buffer.byteLength(name) > NAME_BYTES_MAX) {
      const message = `Could not create snapshot '${name}': more than ${NAME_BYTES_MAX} bytes`;
      throw new BlockError('DF_INVALID', message);
    }
    const now = Date.now();
    await failing(`Could not create snapshot '${name}'`, async () => {
      await snapshots.create({
        name,
        dateSeconds: Math.floor(now / 1000),
        dateNanoseconds: (now % 1000) * 1e6,
      });
    });
  };
}

const apply = (wanted: string): Action => {
  return (snapshots) =>
    failing(`Could not apply snapshot '${wanted}'`, () => snapshots.apply(wanted));
};

/** By name alone, as qemu-img: a number may be the name of one and the id of another. */
const remove = (name: string): Action => {
  return async (snapshots) => {
    const found = (await snapshots.list()).find((each) => each.name === name);
    if (found === undefined) {
      const message = `Could not delete snapshot '${name}': snapshot not found`;
      throw new BlockError('DF_NOT_FOUND', message);
    }
    await failing(`Could not delete snapshot '${name}'`, () => snapshots.delete(found));
  };
};

async function failing(what: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    throw new BlockError('DF_INVALID', what, {}, { cause: error });
  }
}
