// SPDX-License-Identifier: MIT
/** What an earlier `diskferry migrate` was about, as far as the daemon can still tell. */
import type { JsonObject } from '../../protocol/qapi/types.js';
import type { QmpClient } from '../qmp/client.js';

/** The disk that the job copies; undefined when the job has let go of it. */
export async function diskOfJob(
  client: QmpClient,
  job: string,
  target: string,
): Promise<string | undefined> {
  const graph = (await client.execute('x-debug-query-block-graph')) as JsonObject;
  const nodes = (graph.nodes ?? []) as readonly JsonObject[];
  const edges = (graph.edges ?? []) as readonly JsonObject[];
  const own = nodes.find(({ type, name }) => type === 'block-job' && name === job);
  const used = edges
    .filter(({ parent, name }) => parent === own?.id && name !== 'main node')
    .map(({ child }) => nodes.find(({ id }) => id === child)?.name);
  return used.find((name): name is string => typeof name === 'string' && name !== target);
}

/** Address of the target, as its node shows it; undefined when there is no such node. */
export async function addressOfNode(client: QmpClient, name: string): Promise<string | undefined> {
  const nodes = (await client.execute('query-named-block-nodes')) as readonly JsonObject[];
  const node = nodes.find((one) => one['node-name'] === name);
  const file = node?.file;
  return typeof file === 'string' ? file : undefined;
}
