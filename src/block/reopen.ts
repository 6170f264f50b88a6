// SPDX-License-Identifier: MIT
/**
 * `blockdev-reopen`: other options for open nodes. The nodes are drained; drivers get ready, children
 * and permissions change, then all commit, or all is as before.
 */
import { BlockError } from '../base/errors.js';
import type { ChildDefinition, DriverDefinition, DriverOptions } from './block-driver.js';
import { drained } from './drain.js';
import type { ChildEdge } from './edge.js';
import { type BlockGraph, isBelow, UNUSED_PERMISSIONS } from './graph.js';
import type { BlockNode } from './node.js';
import { type NodeOptions, parseNodeOptions, ROOT_DEFAULTS } from './node-options.js';

interface Step {
  readonly node: BlockNode;
  readonly before: NodeOptions;
  readonly after: NodeOptions;
  /** Children that change: the edge that goes, the node that comes. */
  readonly children: { key: string; old: ChildEdge | undefined; next: BlockNode | undefined }[];
}

/**
 * @param list complete new options of each node, as blockdev-add would take them (what is not named
 *   goes back to its default); children by name only
 * @throws BlockError naming the node and what can't be changed; nothing has changed then
 */
export function reopenNodes(graph: BlockGraph, list: readonly DriverOptions[]): Promise<void> {
  return graph.exclusive(() => {
    const steps = list.map((given) => plan(graph, given));
    checkOnce(steps);
    return drained(
      steps.map(({ node }) => node),
      () => carryOut(graph, steps),
    );
  });
}

/**
 * Opens a node for writing, together with what lies below it and was opened for its sake alone. For
 * who holds the graph; drains them.
 * @throws BlockError DF_READ_ONLY and what drivers say; nothing has changed then
 */
export function makeWritableLocked(graph: BlockGraph, node: BlockNode): Promise<void> {
  return changeAccess(graph, node, { readOnly: false });
}

/** The same the other way round. */
export function makeReadOnlyLocked(graph: BlockGraph, node: BlockNode): Promise<void> {
  return changeAccess(graph, node, { readOnly: true });
}

/** Does the work with a node that can be written, and leaves it as it was. */
export async function whileWritableLocked(
  graph: BlockGraph,
  node: BlockNode,
  work: () => void | Promise<void>,
): Promise<void> {
  const { readOnly } = node.options;
  if (readOnly) await makeWritableLocked(graph, node);
  try {
    await work();
  } finally {
    if (readOnly) await makeReadOnlyLocked(graph, node);
  }
}

function changeAccess(
  graph: BlockGraph,
  node: BlockNode,
  { readOnly }: Pick<NodeOptions, 'readOnly'>,
): Promise<void> {
  const nodes = ownStorage(node).filter(({ options }) => options.readOnly !== readOnly);
  const steps = nodes.map((each): Step => {
    const { options } = each;
    return { node: each, before: options, after: { ...options, readOnly }, children: [] };
  });
  return drained(nodes, () => carryOut(graph, steps));
}

/** The node and what holds its data, as far as that was defined with it. */
function ownStorage(node: BlockNode): BlockNode[] {
  const below = [...node.children.values()].filter(
    ({ role, node: { monitorOwned, parents, options } }) =>
      role !== 'backing' &&
      !monitorOwned &&
      parents.size === 1 &&
      options.given['read-only'] === undefined,
  );
  return [node, ...below.flatMap((edge) => ownStorage(edge.node))];
}

/** Of two wishes for one node, parts of both would come true. */
function checkOnce(steps: readonly Step[]): void {
  const seen = new Set<BlockNode>();
  for (const { node } of steps) {
    if (seen.has(node)) {
      throw new BlockError('DF_INVALID', `Node '${node.name}' is given twice`, { node: node.name });
    }
    seen.add(node);
  }
}

function plan(graph: BlockGraph, given: DriverOptions): Step {
  const name = given['node-name'];
  if (typeof name !== 'string') throw new BlockError('DF_INVALID', 'node-name not specified');
  const node = graph.find(name);
  if (node === undefined) {
    throw new BlockError('DF_NOT_FOUND', `Failed to find node with node-name='${name}'`);
  }
  if (given.driver !== node.driver.name) {
    throw new BlockError('DF_INVALID', "Cannot change the option 'driver'", { node: name });
  }
  const definition = graph.drivers.get(node.driver.name);
  return {
    node,
    before: node.options,
    after: parseNodeOptions(given, ROOT_DEFAULTS),
    children: definition.children.flatMap((child) => planChild(graph, node, given, child)),
  };
}

function planChild(
  graph: BlockGraph,
  node: BlockNode,
  given: DriverOptions,
  child: ChildDefinition,
): Step['children'] {
  const value = given[child.key];
  if (value === undefined) return [];
  if (child.list === true) {
    if (!sameList(node, child, value)) throw noOtherFiles(node);
    return [];
  }
  const old = node.children.get(child.key);
  if (value === null && child.required) throw cannotChange(child.key);
  if (typeof value === 'object' && value !== null) {
    // An inline definition describes the child that is there; it can't make another.
    if (old !== undefined && (value as DriverOptions)['node-name'] === old.node.name) return [];
    throw cannotChange(child.key);
  }
  const next = value === null ? undefined : graph.get(String(value));
  if (next === old?.node) return [];
  if (old?.frozen === true) {
    const text = `Cannot change frozen '${old.name}' link from '${node.name}' to '${old.node.name}'`;
    throw new BlockError('DF_IN_USE', text, { node: node.name });
  }
  if (node.driver.childReplaced === undefined) throw noOtherFiles(node);
  return [{ key: child.key, old, next }];
}

function noOtherFiles(node: BlockNode): BlockError {
  return new BlockError(
    'DF_NOT_SUPPORTED',
    `Block format '${node.driver.name}' used by node '${node.name}' does not support reopening files`,
    { node: node.name },
  );
}

/** True when a list of children names those that are there, in their order. */
function sameList(node: BlockNode, { key }: ChildDefinition, value: unknown): boolean {
  const names = (value as readonly unknown[]).map((entry) =>
    typeof entry === 'string' ? entry : (entry as DriverOptions)['node-name'],
  );
  const there = [...node.children]
    .filter(([name]) => name.startsWith(`${key}.`))
    .map(([, edge]) => edge.node.name);
  return names.length === there.length && names.every((name, index) => name === there[index]);
}

const cannotChange = (key: string): BlockError =>
  new BlockError('DF_INVALID', `Cannot change the option '${key}'`);

async function carryOut(graph: BlockGraph, steps: readonly Step[]): Promise<void> {
  const undo: (() => void | Promise<void>)[] = [];
  const commit: (() => void | Promise<void>)[] = [];
  try {
    for (const step of steps) await prepareStep(graph, step, undo, commit);
    // Edges that go have no say any more; a filter may come between a node and its old child.
    const going = steps.flatMap(({ children }) => children.flatMap(({ old }) => old ?? []));
    await graph.updatePermissions(
      [...steps.map(({ node }) => node), ...going.map(({ node }) => node)],
      new Map(going.map((edge) => [edge, UNUSED_PERMISSIONS])),
    );
  } catch (error) {
    for (const back of undo.reverse()) await back();
    await graph.updatePermissions(steps.map(({ node }) => node));
    throw asRefusal(error, steps);
  }
  for (const act of commit) await act();
  for (const { node } of steps) node.refreshLimits();
}

/** Users that write are in the way of a node's becoming read-only, not the other way round. */
function asRefusal(error: unknown, steps: readonly Step[]): unknown {
  if (!(error instanceof BlockError) || error.code !== 'DF_READ_ONLY') return error;
  const { node: name } = error.context;
  if (!steps.some(({ node, before }) => node.name === name && !before.readOnly)) return error;
  const text = `Read-only block node '${name}' cannot support read-write users`;
  return new BlockError('DF_READ_ONLY', text, error.context);
}

async function prepareStep(
  graph: BlockGraph,
  step: Step,
  undo: (() => void | Promise<void>)[],
  commit: (() => void | Promise<void>)[],
): Promise<void> {
  const { node, before, after } = step;
  checkDriverOptions(graph.drivers.get(node.driver.name), node, step);
  if (after.readOnly && !before.readOnly) await node.flush();
  node.options = after;
  undo.push(() => {
    node.options = before;
  });
  for (const { key, old, next } of step.children) {
    const edge = next === undefined ? undefined : await newChild(graph, node, key, next);
    if (edge === undefined) node.children.delete(key);
    else node.children.set(key, edge);
    undo.push(async () => {
      if (old === undefined) node.children.delete(key);
      else node.children.set(key, old);
      if (edge !== undefined) await graph.removeEdge(edge);
    });
    commit.push(() => node.driver.childReplaced?.(key, edge));
    if (old !== undefined) commit.push(() => graph.removeEdge(old));
  }
  if (node.driver.prepareReopen !== undefined) {
    await node.driver.prepareReopen(after);
    undo.push(() => node.driver.abortReopen?.());
    commit.push(() => node.driver.commitReopen?.());
  }
}

async function newChild(
  graph: BlockGraph,
  node: BlockNode,
  key: string,
  next: BlockNode,
): Promise<ChildEdge> {
  if (isBelow(node, next)) {
    throw new BlockError(
      'DF_INVALID',
      `Making '${next.name}' a ${key} child of '${node.name}' would create a cycle`,
      { node: node.name },
    );
  }
  const definition = graph.drivers.get(node.driver.name);
  const role = definition.children.find((child) => child.key === key)?.role ?? 'child';
  return graph.addEdge(node, next, { name: key, role, ...UNUSED_PERMISSIONS });
}

const BASE_OPTIONS = new Set([
  'driver',
  'node-name',
  'discard',
  'cache',
  'read-only',
  'auto-read-only',
  'force-share',
  'detect-zeroes',
]);

/** A driver without `prepareReopen` takes no other values for its own options. */
function checkDriverOptions(definition: DriverDefinition, node: BlockNode, step: Step): void {
  if (node.driver.prepareReopen !== undefined) return;
  const skipped = new Set([...BASE_OPTIONS, ...definition.children.map(({ key }) => key)]);
  const keys = new Set([...Object.keys(step.before.given), ...Object.keys(step.after.given)]);
  for (const key of keys) {
    if (skipped.has(key)) continue;
    if (JSON.stringify(step.before.given[key]) !== JSON.stringify(step.after.given[key])) {
      throw cannotChange(key);
    }
  }
}
