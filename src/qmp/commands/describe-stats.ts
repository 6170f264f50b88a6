// SPDX-License-Identifier: MIT
/** What nodes have done, field by field as QEMU reports it. @see qapi BlockStats */
import type { BlockStats } from '../../../protocol/qapi/block-nodes-info.js';
import type { Output } from '../../../protocol/qapi/types.js';
import type { LatencyHistogram } from '../../block/latency-histogram.js';
import type { BlockNode } from '../../block/node.js';

type Stats = Output<typeof BlockStats>;

/** Statistics of a node and, nested, of its file and backing nodes. */
export function describeNodeStats(node: BlockNode): Stats {
  const parent = primaryChild(node);
  const backing = node.children.get('backing')?.node;
  const specific = node.driver.specificStats?.();
  return {
    'node-name': node.name,
    stats: describeCounters(node),
    ...(specific !== undefined
      ? { 'driver-specific': { driver: node.driver.name, ...specific } as Stats['driver-specific'] }
      : {}),
    ...(parent !== undefined ? { parent: describeNodeStats(parent) } : {}),
    ...(backing !== undefined ? { backing: describeNodeStats(backing) } : {}),
  };
}

function primaryChild(node: BlockNode): BlockNode | undefined {
  return (node.children.get('file') ?? node.children.get('image'))?.node;
}

function describeCounters(node: BlockNode): Stats['stats'] {
  const { read, write, flush, unmap, highestWriteEnd } = node.stats;
  const idle = node.stats.idleNs();
  return {
    rd_bytes: read.bytes,
    wr_bytes: write.bytes,
    unmap_bytes: unmap.bytes,
    rd_operations: read.operations,
    wr_operations: write.operations,
    flush_operations: flush.operations,
    unmap_operations: unmap.operations,
    rd_total_time_ns: Math.round(read.totalNs),
    wr_total_time_ns: Math.round(write.totalNs),
    flush_total_time_ns: Math.round(flush.totalNs),
    unmap_total_time_ns: Math.round(unmap.totalNs),
    wr_highest_offset: highestWriteEnd,
    rd_merged: 0,
    wr_merged: 0,
    unmap_merged: 0,
    ...(idle !== undefined ? { idle_time_ns: Math.round(idle) } : {}),
    failed_rd_operations: read.failed,
    failed_wr_operations: write.failed,
    failed_flush_operations: flush.failed,
    failed_unmap_operations: unmap.failed,
    invalid_rd_operations: read.invalid,
    invalid_wr_operations: write.invalid,
    invalid_flush_operations: flush.invalid,
    invalid_unmap_operations: unmap.invalid,
    account_invalid: true,
    account_failed: true,
    timed_stats: [],
    ...histogram('rd_latency_histogram', read.histogram),
    ...histogram('wr_latency_histogram', write.histogram),
    ...histogram('flush_latency_histogram', flush.histogram),
  };
}

function histogram(
  key: string,
  counts: LatencyHistogram | undefined,
): Record<string, { boundaries: number[]; bins: number[] }> {
  if (counts === undefined) return {};
  return { [key]: { boundaries: [...counts.boundaries], bins: [...counts.bins] } };
}
