// SPDX-License-Identifier: MIT
/** What our schema says of a command is what qemu-storage-daemon says of it, as far as we have it. */
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { QAPI_COMMANDS, QAPI_EVENTS } from '../../protocol/qapi/all.js';
import { schemaInfo } from '../../protocol/qapi/schema-info.js';
import { spawnTracked } from '../support/peers.js';
import { QmpPeer } from '../unit/qmp/qmp-peer.js';

type Info = ReturnType<typeof schemaInfo>[number];
type Schema = ReadonlyMap<string, Info>;

/** Where we differ from QEMU 7.2 on purpose, with the reason. */
const DIFFERENCES: Readonly<Record<string, string>> = {
  'query-version': 'may run out of band',
  'query-commands': 'may run out of band',
  'query-block-jobs->[].type': 'an enum, as in later releases',
};

async function qemuSchema(): Promise<Schema> {
  const folder = await mkdtemp(join(tmpdir(), 'diskferry-qsd-'));
  const path = join(folder, 'm.sock');
  const chardev = `socket,id=m,path=${path},server=on,wait=off`;
  const qsd = spawnTracked(
    'qemu-storage-daemon',
    ['--chardev', chardev, '--monitor', 'chardev=m'],
    {
      stdio: 'inherit',
    },
  );
  const failed = new Promise<never>((_, reject) => qsd.once('error', reject));
  try {
    const peer = await Promise.race([firstConnection(path), failed]);
    await peer.negotiate();
    const { return: infos } = await peer.ask('query-qmp-schema');
    peer.close();
    return new Map((infos as Info[]).map((info) => [info.name, info]));
  } finally {
    qsd.kill();
    await rm(folder, { recursive: true });
  }
}

async function firstConnection(path: string): Promise<QmpPeer> {
  for (;;) {
    const socket = connect(path);
    const isOpen = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    if (isOpen) return new QmpPeer(socket);
    await sleep(20);
  }
}

/** Walks both schemas in parallel from commands and events down, and collects what differs. */
class Comparison {
  readonly found: string[] = [];
  readonly #seen = new Set<string>();

  constructor(
    readonly ours: Schema,
    readonly theirs: Schema,
  ) {}

  compare(ourName: string, theirName: string, place: string): void {
    const key = `${ourName} ${theirName}`;
    const a = this.ours.get(ourName);
    const b = this.theirs.get(theirName);
    if (this.#seen.has(key) || a === undefined || b === undefined) return;
    this.#seen.add(key);
    if (a['meta-type'] === 'builtin' && b['meta-type'] === 'builtin') {
      if (a['json-type'] !== b['json-type']) this.found.push(place);
    } else if (a['meta-type'] === 'array' && b['meta-type'] === 'array') {
      this.compare(a['element-type'], b['element-type'], `${place}[]`);
    } else if (a['meta-type'] === 'alternate' && b['meta-type'] === 'alternate') {
      for (const [index, member] of a.members.entries()) {
        this.compare(member.type, b.members[index]?.type ?? '', place);
      }
    } else if (a['meta-type'] === 'object' && b['meta-type'] === 'object') {
      this.#compareObjects(a, b, place);
    } else if (a['meta-type'] === 'command' && b['meta-type'] === 'command') {
      if (a['allow-oob'] !== b['allow-oob']) this.found.push(place);
      this.compare(a['arg-type'], b['arg-type'], place);
      this.compare(a['ret-type'], b['ret-type'], `${place}->`);
    } else if (a['meta-type'] === 'event' && b['meta-type'] === 'event') {
      this.compare(a['arg-type'], b['arg-type'], place);
    } else if (a['meta-type'] !== b['meta-type']) this.found.push(place);
  }

  #compareObjects(
    a: Extract<Info, { 'meta-type': 'object' }>,
    b: Extract<Info, { 'meta-type': 'object' }>,
    place: string,
  ): void {
    const isArgument = !place.includes('->');
    if (a.tag !== b.tag) this.found.push(place);
    for (const member of b.members) {
      // A member that QEMU needs and that we do not know would break every caller.
      const isNeeded = !('default' in member) && !a.members.some((m) => m.name === member.name);
      if (isNeeded && isArgument) this.found.push(`${place}.${member.name}`);
    }
    for (const member of a.members) {
      const other = b.members.find(({ name }) => name === member.name);
      if (other === undefined) continue;
      const at = `${place}.${member.name}`;
      const isOptional = 'default' in member;
      if (isArgument && isOptional !== 'default' in other) this.found.push(at);
      this.compare(member.type, other.type, at);
    }
    for (const variant of a.variants ?? []) {
      const other = b.variants?.find((v) => v.case === variant.case);
      if (other !== undefined) this.compare(variant.type, other.type, `${place}<${variant.case}>`);
    }
  }
}

test('introspection agrees with that of qemu-storage-daemon', async () => {
  const infos = schemaInfo(QAPI_COMMANDS, QAPI_EVENTS);
  const ours = new Map(infos.map((info) => [info.name, info]));
  const comparison = new Comparison(ours, await qemuSchema());
  for (const { name } of [...QAPI_COMMANDS, ...QAPI_EVENTS]) comparison.compare(name, name, name);
  expect(comparison.found.filter((place) => !(place in DIFFERENCES))).toEqual([]);
});
