// SPDX-License-Identifier: MIT
/** Whether clients are served: `stop`, `cont`, `query-status`. */
import * as qapi from '../../../protocol/qapi/run-state.js';
import type { ExportedNodes } from '../../nbd/server/exported-nodes.js';
import type { EventHub } from '../events.js';
import type { CommandRegistry } from '../registry.js';

export function registerRunState(
  registry: CommandRegistry,
  { exported, events }: { readonly exported: ExportedNodes; readonly events: EventHub },
): void {
  registry.register(qapi.STOP, async () => {
    const before = exported.held;
    await exported.hold();
    if (!before) events.emit(qapi.STOP_EVENT);
  });
  registry.register(qapi.CONT, () => {
    if (!exported.held) return;
    exported.release();
    events.emit(qapi.RESUME_EVENT);
  });
  registry.register(qapi.QUERY_STATUS, () => ({
    running: !exported.held,
    status: exported.held ? ('paused' as const) : ('running' as const),
  }));
}
