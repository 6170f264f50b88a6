// SPDX-License-Identifier: MIT
/** `x-blockdev-change`: one child more, or one less, for a node that is in use. */
import { BlockError } from '../base/errors.js';
import { drained } from './drain.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, isBelow, UNUSED_PERMISSIONS } from './graph.js';
import type { BlockNode } from './node.js';

/** How often a child that goes is told to wait for nobody, milliseconds. */
const GIVE_UP_INTERVAL_MS = 100;

/**
 * Puts `node` below `parent`, in a drained section.
 * @throws BlockError when the parent takes no more children, or not this one, or permissions
 *   conflict; nothing has changed then
 */
export function addChild(graph: BlockGraph, parent: BlockNode, node: BlockNode): Promise<void> {
  return graph.exclusive(async () => {
    const list = parent.driver.childList;
    if (list === undefined) {
      throw new BlockError(
        'DF_NOT_SUPPORTED',
        `The node ${parent.name} does not support adding a child`,
      );
    }
    if (node.parents.size > 0) {
      throw new BlockError('DF_IN_USE', `The node ${node.name} already has a parent`);
    }
    const { key, role } = list.next(node);
    if (isBelow(parent, node)) {
      throw new BlockError(
        'DF_INVALID',
        `Making '${node.name}' a ${key} child of '${parent.name}' would create a cycle`,
      );
    }
    await drained([parent], async () => {
      const edge = await graph.addEdge(parent, node, { name: key, role, ...UNUSED_PERMISSIONS });
      parent.children.set(key, edge);
      try {
        await graph.updatePermissions([parent]);
      } catch (error) {
        parent.children.delete(key);
        await graph.removeEdge(edge);
        throw error;
      }
      list.added(edge);
      parent.refreshLimits();
    });
  });
}

/**
 * Takes the child with key `key` from `parent`, in a drained section; its node is closed when nobody
 * else wants it.
 * @throws BlockError when there is no such child, or it can't be spared; nothing has changed then
 */
export function removeChild(graph: BlockGraph, parent: BlockNode, key: string): Promise<void> {
  return graph.exclusive(async () => {
    const edge = parent.children.get(key);
    if (edge === undefined) {
      throw new BlockError('DF_NOT_FOUND', `Node '${parent.name}' does not have child '${key}'`);
    }
    const list = parent.driver.childList;
    if (list === undefined) {
      throw new BlockError(
        'DF_NOT_SUPPORTED',
        `The node ${parent.name} does not support removing a child`,
      );
    }
    list.checkRemove(edge);
    await withoutWaiting(edge, async () => {
      await drained([parent], () => {
        parent.children.delete(key);
        list.removed(edge);
        parent.refreshLimits();
      });
      // Closing may take its time; the parent's users need not wait for that.
      await graph.removeEdge(edge);
    });
  });
}

/**
 * What waits for the lost peer of a child that goes would hold up the drained section; that it is
 * lost may be noticed only in the middle of it.
 */
async function withoutWaiting(edge: ChildEdge, change: () => Promise<void>): Promise<void> {
  const { node } = edge;
  if (node.parents.size > 1) return change();
  node.cancelInFlight();
  const timer = setInterval(() => node.cancelInFlight(), GIVE_UP_INTERVAL_MS);
  try {
    await change();
  } finally {
    clearInterval(timer);
  }
}
