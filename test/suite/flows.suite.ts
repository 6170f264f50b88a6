// SPDX-License-Identifier: MIT
/** A test for each dialogue of a folder, and each pair of programs that may play it. */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, it } from 'vitest';
import type { Player } from '../support/flow-peer.js';
import { FlowReplay } from '../support/flow-replay.js';
import { type FlowLine, parseFlow } from '../support/flow-text.js';
import { testScope } from '../support/temp.js';

const OURS = 'diskferryd';
const QEMU = 'qemu-storage-daemon';

const TIMEOUT_MS = 60_000;

interface Cast {
  readonly src: Player;
  readonly dst?: Player;
}

/** Every pairing, or what the line `% only SRC [DST]` says. */
function castsOf(lines: readonly FlowLine[]): Cast[] {
  const steps = lines.map(({ step }) => step);
  const chosen = steps.flatMap((step) =>
    step.kind === 'verb' && step.verb === 'only' ? [step.words as readonly Player[]] : [],
  );
  const casts = chosen.map(([src = OURS, dst]) => ({ src, ...(dst ? { dst } : {}) }));
  if (casts.length > 0) return casts;
  const two = steps.some((step) => 'side' in step && step.side === 'dst');
  if (!two) return [{ src: OURS }, { src: QEMU }];
  return [
    { src: OURS, dst: OURS },
    { src: OURS, dst: QEMU },
    { src: QEMU, dst: OURS },
    { src: QEMU, dst: QEMU },
  ];
}

/** Makes the tests of all `.flow` files of a folder. */
export function describeFlows(folder: URL): void {
  const flows = readdirSync(folder).filter((name) => name.endsWith('.flow'));
  describe.each(flows)('%s', (name) => {
    const lines = parseFlow(readFileSync(new URL(name, folder), 'utf8'));
    const casts = castsOf(lines).map((cast) => ({ cast, players: Object.values(cast).join(', ') }));
    it.each(casts)(
      'goes on as written: $players',
      async ({ cast }) => {
        const replay = await FlowReplay.start(testScope(), cast);
        await replay.play(lines);
      },
      TIMEOUT_MS,
    );
  });
}
