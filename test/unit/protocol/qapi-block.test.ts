// SPDX-License-Identifier: MIT
/**
 * Our schema beside that of the installed qemu-storage-daemon: every command, event and type that has
 * a counterpart there is the same, as far as it goes. What is ours or newer is listed here.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { beforeAll, describe, expect, it } from 'vitest';
import { QAPI_COMMANDS, QAPI_EVENTS } from '../../../protocol/qapi/all.js';
import { schemaInfo } from '../../../protocol/qapi/schema-info.js';

type Info = {
  name: string;
  'meta-type': string;
  'json-type'?: string;
  members?: { name?: string; type?: string; default?: null; features?: string[] }[];
  variants?: { case: string; type: string }[];
  tag?: string;
  'element-type'?: string;
  'arg-type'?: string;
  'ret-type'?: string;
  features?: string[];
};
type Schema = Map<string, Info>;

/** Commands and events that the storage daemon of QEMU 7.2 does not have. */
const NOT_IN_PEER = [
  'block_passwd', // gone since QEMU 6
  'blockdev-set-active', // QEMU 10.0
  'block-latency-histogram-set', // qemu-system only
  'query-status', // qemu-system only, as are the next four
  'query-nbd-server',
  'stop',
  'cont',
  'STOP',
  'RESUME',
  'block-job-change', // QEMU 8.2
  'blockdev-replace', // proposed for QEMU
  'BLOCK_JOB_NOT_CONVERGING', // ours
];

/** Members and values, as seen from the command or event down, that are ours or newer. */
const OURS_OR_NEWER = [
  'nbd-server-start.handshake-max-seconds', // QEMU 10.0
  'nbd-server-start.websocket', // ours
  'transaction.actions[].type=blockdev-replace', // proposed for QEMU
  'block-export-add.allow-inactive', // QEMU 10.0
  'block-export-del.mode=hide', // ours
  'nbd-server-remove.mode=hide', // ours
  'blockdev-add(nbd).server.type=websocket', // ours
  'blockdev-reopen.options[](nbd).server.type=websocket', // ours
  'blockdev-create.options(luks).file(nbd).server.type=websocket', // ours
  'blockdev-add(nbd).connections', // ours
  'blockdev-reopen.options[](nbd).connections', // ours
  'blockdev-add(copy-before-write).min-cluster-size', // QEMU 9.2
  'blockdev-reopen.options[](copy-before-write).min-cluster-size', // QEMU 9.2
  'blockdev-create.options(luks).file(nbd).connections', // ours
  'blockdev-create.options(luks).file(copy-before-write).min-cluster-size', // QEMU 9.2
  'blockdev-create.options(luks).file(qcow2).discard-no-unref', // QEMU 8.1
  'blockdev-add(qcow2).discard-no-unref', // QEMU 8.1
  'blockdev-reopen.options[](qcow2).discard-no-unref', // QEMU 8.1
  'blockdev-backup.x-perf.min-cluster-size', // QEMU 9.2
  'block-commit.backing-mask-protocol', // QEMU 9.0
  'block-stream.backing-mask-protocol', // QEMU 9.0
  'blockdev-mirror.bitmap', // ours
  'blockdev-mirror.bitmap-mode', // ours
  'blockdev-mirror.target-is-zero', // QEMU 10.1
  'blockdev-backup.on-cbw-error', // newer
  'blockdev-backup.cbw-timeout', // newer
  'drive-mirror.bitmap', // ours
  'drive-mirror.bitmap-mode', // ours
  'drive-mirror.copy-mode=auto', // ours
  'blockdev-backup.discard-source', // QEMU 9.1
  'drive-backup.discard-source', // QEMU 9.1
  'transaction.actions[](blockdev-backup).data.discard-source', // QEMU 9.1
  'transaction.actions[](drive-backup).data.discard-source', // QEMU 9.1
  'drive-backup.on-cbw-error', // newer
  'drive-backup.cbw-timeout', // newer
  'drive-backup.x-perf.min-cluster-size', // QEMU 9.2
  'transaction.actions[](drive-backup).data.on-cbw-error', // newer
  'transaction.actions[](drive-backup).data.cbw-timeout', // newer
  'transaction.actions[](blockdev-backup).data.x-perf.min-cluster-size', // QEMU 9.2
  'transaction.actions[](blockdev-backup).data.on-cbw-error', // newer
  'transaction.actions[](blockdev-backup).data.cbw-timeout', // newer
  'query-named-block-nodes->[].active', // QEMU 10.0
  'query-block->[].inserted.active', // QEMU 10.0
  'blockdev-mirror.copy-mode=auto', // ours
  'query-block-jobs->[].copy-mode', // ours
  'query-block-jobs->[].actively-synced', // QEMU 9.0
  'query-jobs->[].remaining', // ours
  'query-jobs->[].rate', // ours
  'query-jobs->[].time-left', // ours
  'query-block-jobs->[].remaining', // ours
  'query-block-jobs->[].rate', // ours
  'query-block-jobs->[].time-left', // ours
  'query-block-jobs->[].type: enum instead of builtin', // QEMU 8.2
];

/** Features that only newer releases have. */
const NEWER_FEATURES: Readonly<Record<string, readonly string[]>> = {
  'block-job-pause': ['deprecated'],
  'block-job-resume': ['deprecated'],
  'block-job-complete': ['deprecated'],
  'block-job-dismiss': ['deprecated'],
  'block-job-finalize': ['deprecated'],
};

let ours: Schema;
let theirs: Schema;
/** Every difference that any of the tests met. */
const found = new Set<string>();

async function peerSchema(): Promise<Schema> {
  const peer = spawn('qemu-storage-daemon', ['--chardev', 'stdio,id=c', '--monitor', 'chardev=c'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  try {
    peer.stdin.write('{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema","id":1}\n');
    for await (const line of createInterface({ input: peer.stdout })) {
      const message = JSON.parse(line) as { id?: number; return: Info[] };
      if (message.id === 1) return byName(message.return);
    }
    throw new Error('the peer ended without telling its schema');
  } finally {
    peer.kill();
  }
}

function byName(list: readonly Info[]): Schema {
  return new Map(list.map((info) => [info.name, info]));
}

beforeAll(async () => {
  ours = byName(schemaInfo(QAPI_COMMANDS, QAPI_EVENTS) as unknown as Info[]);
  theirs = await peerSchema();
});

function entry(schema: Schema, name: string | undefined): Info {
  const info = schema.get(name ?? '');
  if (info === undefined) throw new Error(`no type ${name}`);
  return info;
}

/** Walks both schemas side by side and notes every difference with its place. */
class Comparison {
  readonly differences: string[] = [];
  readonly #seen = new Set<string>();

  type(place: string, our: string | undefined, their: string | undefined): void {
    const key = `${our}/${their}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const a = entry(ours, our);
    const b = entry(theirs, their);
    if (a['meta-type'] !== b['meta-type']) {
      this.differences.push(`${place}: ${a['meta-type']} instead of ${b['meta-type']}`);
    } else if (a['meta-type'] === 'builtin') {
      if (a['json-type'] !== b['json-type']) this.differences.push(`${place}: ${our}, ${their}`);
    } else if (a['meta-type'] === 'array') {
      this.type(`${place}[]`, a['element-type'], b['element-type']);
    } else if (a['meta-type'] === 'enum') {
      this.#enum(place, a, b);
    } else if (a['meta-type'] === 'alternate') {
      this.#alternate(place, a, b);
    } else {
      this.object(place, a, b);
    }
  }

  #enum(place: string, a: Info, b: Info): void {
    const values = (info: Info): string[] => (info.members ?? []).map(({ name }) => name ?? '');
    const known = values(b);
    for (const value of values(a)) {
      if (!known.includes(value)) this.differences.push(`${place}=${value}`);
    }
  }

  #alternate(place: string, a: Info, b: Info): void {
    for (const member of a.members ?? []) {
      const kind = entry(ours, member.type)['meta-type'];
      const json = entry(ours, member.type)['json-type'];
      const twin = (b.members ?? []).find(({ type }) => {
        const info = entry(theirs, type);
        return info['meta-type'] === kind && info['json-type'] === json;
      });
      if (twin === undefined) this.differences.push(`${place}: no branch like ${member.type}`);
      else this.type(place, member.type, twin.type);
    }
  }

  object(place: string, a: Info, b: Info): void {
    const known = new Map((b.members ?? []).map((member) => [member.name, member]));
    const order = [...known.keys()];
    let last = -1;
    for (const member of a.members ?? []) {
      const where = `${place}.${member.name}`;
      const twin = known.get(member.name);
      if (twin === undefined) {
        this.differences.push(where);
        continue;
      }
      const position = order.indexOf(member.name);
      if (position < last) this.differences.push(`${where}: out of order`);
      last = position;
      if ('default' in member !== 'default' in twin) {
        this.differences.push(`${where}: ${'default' in twin ? 'optional' : 'required'} there`);
      }
      if (String(member.features) !== String(twin.features)) {
        this.differences.push(`${where}: features ${twin.features} there`);
      }
      this.type(where, member.type, twin.type);
    }
    const have = new Set((a.members ?? []).map(({ name }) => name));
    for (const member of b.members ?? []) {
      if (!('default' in member) && !have.has(member.name)) {
        this.differences.push(`${place}.${member.name}: missing`);
      }
    }
    this.#variants(place, a, b);
  }

  #variants(place: string, a: Info, b: Info): void {
    if (a.tag !== b.tag) this.differences.push(`${place}: told apart by ${a.tag}, there ${b.tag}`);
    for (const variant of a.variants ?? []) {
      const twin = b.variants?.find((other) => other.case === variant.case);
      if (twin !== undefined) this.type(`${place}(${variant.case})`, variant.type, twin.type);
    }
    if (String(a.features) !== String(b.features)) {
      this.differences.push(`${place}: features ${b.features} there`);
    }
  }
}

const definitions = [...QAPI_COMMANDS, ...QAPI_EVENTS];

describe('the schema of the block part is that of qemu-storage-daemon', () => {
  const shared = definitions.map(({ name }) => name).filter((name) => !NOT_IN_PEER.includes(name));

  it.each(shared)('%s', (name) => {
    const a = entry(ours, name);
    const b = entry(theirs, name);
    const comparison = new Comparison();
    comparison.type(name, a['arg-type'], b['arg-type']);
    if (a['meta-type'] === 'command') {
      comparison.type(`${name}->`, a['ret-type'], b['ret-type']);
    }
    const expected = [...(b.features ?? []), ...(NEWER_FEATURES[name] ?? [])];
    expect(a.features ?? []).toEqual(expected);
    for (const difference of comparison.differences) found.add(difference);
    expect(comparison.differences.filter((d) => !OURS_OR_NEWER.includes(d))).toEqual([]);
  });

  it('differs where this test says that it does', () => {
    expect(OURS_OR_NEWER.filter((difference) => !found.has(difference))).toEqual([]);
  });

  it('lists as absent from the peer only what is', () => {
    const names = new Set<string>(definitions.map(({ name }) => name));
    for (const name of NOT_IN_PEER) {
      expect(names.has(name)).toBe(true);
      expect(theirs.has(name)).toBe(false);
    }
  });
});
