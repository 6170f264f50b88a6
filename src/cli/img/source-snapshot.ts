// SPDX-License-Identifier: MIT
/** `-l`: an image is read as it was when one of its internal snapshots was made. */
import { BlockError } from '../../base/errors.js';
import type { BlockBackend } from '../../block/backend.js';
import { parseKeyval } from '../../daemon/keyval.js';

/**
 * @param image opened read-only
 * @param text an id or a name, or snapshot.id=ID,snapshot.name=NAME (one of them, or both)
 * @throws BlockError when there is no such snapshot
 */
export async function showSnapshot(image: BlockBackend, text: string): Promise<void> {
  const failed = 'Failed to load snapshot';
  const { snapshots } = image.root.node.driver;
  if (snapshots === undefined) {
    const { name } = image.root.node.driver;
    const message = `${failed}: the format '${name}' has no snapshots inside its images`;
    throw new BlockError('DF_NOT_SUPPORTED', message);
  }
  const { id, name } = wanted(text);
  const found = (await snapshots.list()).find((each) =>
    id !== undefined && id === name
      ? each.id === id || each.name === name
      : (id === undefined || each.id === id) && (name === undefined || each.name === name),
  );
  if (found === undefined) {
    throw new BlockError('DF_NOT_FOUND', `${failed}: Can't find snapshot '${text}'`);
  }
  await snapshots.show(found);
}

function wanted(text: string): { readonly id?: string; readonly name?: string } {
  if (!text.startsWith('snapshot.')) return { id: text, name: text };
  const { tree } = parseKeyval(text);
  const { id, name, ...rest } = (tree.snapshot ?? {}) as Record<string, unknown>;
  const [other] = [...Object.keys(rest), ...Object.keys(tree).filter((key) => key !== 'snapshot')];
  if (other !== undefined) {
    throw new BlockError('DF_INVALID', `Failed in parsing snapshot param '${text}'`);
  }
  return {
    ...(id === undefined ? {} : { id: String(id) }),
    ...(name === undefined ? {} : { name: String(name) }),
  };
}
