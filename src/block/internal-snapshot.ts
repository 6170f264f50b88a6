// SPDX-License-Identifier: MIT
/** Snapshots inside images, made and deleted while the image is in use. */
import { wallClockMs } from '../base/clock.js';
import { BlockError } from '../base/errors.js';
import type { InternalSnapshot, InternalSnapshots } from './block-driver.js';
import type { ChangesAhead } from './changes-ahead.js';
import { drained } from './drain.js';
import type { BlockGraph } from './graph.js';
import type { BlockNode } from './node.js';
import type { Change } from './transaction.js';

const MS_PER_S = 1000;
const NS_PER_MS = 1e6;
/** Longest name, bytes: QEMU cuts longer ones off. */
const NAME_BYTES_MAX = 255;

/** A node that snapshots are asked of, and the one below it that keeps them. */
interface Keeper {
  readonly node: BlockNode;
  readonly keeper: BlockNode;
  readonly snapshots: InternalSnapshots;
}

/**
 * A new snapshot; its point in time is that of `prepare`. Undoing it deletes it. Where that fails it
 * stays, which the graph's observer is told.
 * @param root finds the node, when it is needed, or before other changes are made; may throw
 * @param name not empty, at most 255 bytes, of no other snapshot of the image
 */
export function takingInternalSnapshot(
  graph: BlockGraph,
  root: (ahead?: ChangesAhead) => BlockNode,
  { device, name }: { readonly device: string; readonly name: string },
): Change {
  let taken: (Keeper & { readonly made: InternalSnapshot }) | undefined;
  return {
    async check(ahead) {
      if (ahead.isComing(device)) return;
      await graph.exclusive(() => {
        const node = root(ahead);
        if (ahead.movesNodes) return;
        return checkName(checkCanTake(node, findKeeper(node), device), device, name);
      });
    },
    prepare: () =>
      graph.exclusive(async () => {
        const node = root();
        const keeper = findKeeper(node);
        await drained([node, keeper?.node ?? node], async () => {
          const found = checkCanTake(node, keeper, device);
          await checkName(found, device, name);
          taken = { ...found, made: await take(found, device, name) };
        });
      }),
    abort: () =>
      graph.exclusive(async () => {
        if (taken === undefined) return;
        const { node, keeper, snapshots, made } = taken;
        try {
          await drained([node, keeper], () => snapshots.delete(made));
        } catch (error) {
          graph.observer.snapshotLeft?.(keeper, made, error);
        }
      }),
  };
}

/**
 * Deletes a snapshot by its id, its name, or both.
 * @returns what it was @throws BlockError DF_NOT_FOUND, and what keeps it from being deleted
 */
export function deleteInternalSnapshot(
  graph: BlockGraph,
  root: () => BlockNode,
  wanted: {
    readonly device: string;
    readonly id: string | undefined;
    readonly name: string | undefined;
  },
): Promise<InternalSnapshot> {
  const { device, id, name } = wanted;
  return graph.exclusive(async () => {
    const node = root();
    if (id === undefined && name === undefined) {
      throw new BlockError('DF_INVALID', 'Name or id must be provided');
    }
    const found = findKeeper(node);
    if (found === undefined) throw noList();
    return drained([node, found.keeper], async () => {
      const gone = (await listOf(found)).find(
        (one) => (id === undefined || one.id === id) && (name === undefined || one.name === name),
      );
      if (gone === undefined) {
        throw new BlockError(
          'DF_INVALID',
          `Snapshot with id '${id ?? 'null'}' and name '${name ?? 'null'}' does not exist on ` +
            `device '${device}'`,
          { node: node.name },
        );
      }
      checkWritable(node, found.keeper, device);
      await found.snapshots.delete(gone);
      return gone;
    });
  });
}

/**
 * The node itself where its format has snapshots, else the one node that all its data is in.
 * Undefined: none has.
 */
function findKeeper(node: BlockNode): Keeper | undefined {
  for (let at: BlockNode | undefined = node; at !== undefined; at = onlyChild(at)) {
    const { snapshots } = at.driver;
    if (snapshots !== undefined) return { node, keeper: at, snapshots };
  }
  return undefined;
}

/** With a second child a snapshot of one would not be one of the whole. */
function onlyChild(node: BlockNode): BlockNode | undefined {
  const children = [...node.children.values()].filter(({ role }) => role !== 'backing');
  const [only] = children;
  if (children.length !== 1 || (only?.role !== 'file' && only?.role !== 'filtered'))
    return undefined;
  return only.node;
}

function checkCanTake(node: BlockNode, found: Keeper | undefined, device: string): Keeper {
  checkWritable(node, found?.keeper ?? node, device);
  if (found !== undefined) return found;
  throw new BlockError(
    'DF_NOT_SUPPORTED',
    `Block format '${node.driver.name}' used by device '${device}' does not support internal ` +
      'snapshots',
    { node: node.name },
  );
}

function checkWritable(node: BlockNode, keeper: BlockNode, device: string): void {
  for (const one of [node, keeper]) {
    if (!one.readOnly && one.active) continue;
    throw new BlockError('DF_READ_ONLY', `Device '${device}' is read only`, { node: one.name });
  }
}

async function checkName(found: Keeper, device: string, name: string): Promise<void> {
  if (name === '') throw new BlockError('DF_INVALID', 'Name is empty');
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) {
    throw new BlockError('DF_INVALID', `Name is longer than ${NAME_BYTES_MAX} bytes`);
  }
  if ((await listOf(found)).every((one) => one.name !== name)) return;
  throw new BlockError(
    'DF_EXISTS',
    `Snapshot with name '${name}' already exists on device '${device}'`,
    { node: found.node.name },
  );
}

async function take(
  { snapshots }: Keeper,
  device: string,
  name: string,
): Promise<InternalSnapshot> {
  const now = wallClockMs();
  try {
    return await snapshots.create({
      name,
      dateSeconds: Math.floor(now / MS_PER_S),
      dateNanoseconds: (now % MS_PER_S) * NS_PER_MS,
    });
  } catch (cause) {
    const message = `Failed to create snapshot '${name}' on device '${device}'`;
    throw new BlockError('DF_INVALID', message, {}, { cause });
  }
}

async function listOf({ snapshots }: Keeper): Promise<InternalSnapshot[]> {
  try {
    return await snapshots.list();
  } catch (cause) {
    throw new BlockError('DF_INVALID', 'Failed to get a snapshot list', {}, { cause });
  }
}

const noList = (): BlockError =>
  new BlockError('DF_NOT_SUPPORTED', 'Failed to get a snapshot list: Operation not supported');
