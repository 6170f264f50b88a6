// SPDX-License-Identifier: MIT
/** `diskferry migrate --bitmaps`: what it refuses, and that nothing is left of it then. */
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  BitmapMigration,
  bitmapsOf,
  differsAt,
  inventory,
  reopen,
  type Side,
  type SideOptions,
} from '../support/bitmap-migration.js';
import { waitUntil } from '../support/daemon.js';
import { diskferry, startDiskferry } from '../support/diskferry.js';
import { MIB } from '../support/images.js';
import { MonitorTap } from '../support/monitor-tap.js';
import { testScope } from '../support/temp.js';

const NAMES = ['daily', 'fine', 'old'];

async function stateOf(side: Side): Promise<unknown> {
  return [await bitmapsOf(side), await inventory(side)];
}

/** It must end with status 1 and the text, the users being where they were and both sides unchanged. */
async function expectRefusal(
  bench: BitmapMigration,
  text: string,
  words: string[] = bench.words(),
): Promise<void> {
  const before = [await stateOf(bench.source), await stateOf(bench.target)];
  const { code, stdout, stderr } = await diskferry(words);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toContain(text);
  expect([await stateOf(bench.source), await stateOf(bench.target)]).toEqual(before);
}

describe('diskferry migrate', () => {
  it.each([
    [['--bitmaps'], '--bitmaps needs --to-monitor MONITOR'],
    [['--bitmaps', '--to-monitor', 'm', '--copy-only'], '--bitmaps goes with a move'],
    [['--to-monitor', 'm'], '--to-monitor, --to-node and --from-nbd go with --bitmaps'],
    [['--to-node', 'n'], '--to-monitor, --to-node and --from-nbd go with --bitmaps'],
    [['--from-nbd', 'nbd://h'], '--to-monitor, --to-node and --from-nbd go with --bitmaps'],
  ])('refuses %j before it connects to anything', async (more, text) => {
    const words = ['migrate', '--from', '/none', '--node', 'd', '--to', 'nbd://h/d', ...more];
    const { code, stderr } = await diskferry(words);
    expect(code).toBe(1);
    expect(stderr).toContain(text);
  });
});

describe('a migration with bitmaps is refused', () => {
  it('where the target can not keep persistent ones', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1, target: { format: 'raw' } });
    await expectRefusal(bench, "node 'disk' there can't have the bitmaps 'daily', 'fine', 'old'");
  });

  it('where the target has one of the same name', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1 });
    await bench.target.qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'old' });
    await expectRefusal(bench, 'Bitmap already exists: old');
  });

  it('while one is in use', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1 });
    const shown = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'e', bitmaps: ['old'] };
    await bench.source.qmp.execute('block-export-add', shown);
    await expectRefusal(bench, "bitmap 'old' of 'disk' is in use by another operation");
  });

  it('where there are none, there is no such node, or it has another size', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1 });
    const nowhere = bench.words('--to-node', 'nowhere');
    await expectRefusal(bench, "the target has no node 'nowhere'", nowhere);
    const small = { driver: 'null-co', 'node-name': 'small', size: MIB };
    await bench.target.qmp.execute('blockdev-add', small);
    const other = bench.words('--to-node', 'small');
    await expectRefusal(bench, `node 'small' there has ${MIB} bytes`, other);
    for (const name of NAMES) {
      await bench.source.qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name });
    }
    await expectRefusal(bench, "--bitmaps: node 'disk' has none to carry along");
  });

  it('when the node that was named is not what the disk is copied to', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1 });
    for (const name of ['daily', 'old']) {
      await bench.source.qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name });
    }
    const size = (await bench.content(bench.source)).byteLength;
    const other = { driver: 'null-co', 'node-name': 'other', size };
    await bench.target.qmp.execute('blockdev-add', other);
    await expectRefusal(bench, "not all of it to node 'other'", bench.words('--to-node', 'other'));
  });

  it('when a monitor or an NBD server can not be reached', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 1 });
    const words = bench.words().map((w) => (w === bench.target.daemon.qmpPath ? '/none' : w));
    await expectRefusal(bench, "no QMP monitor at '/none'", words);
    const server = ['--from-nbd', 'nbd+unix://?socket=/none'];
    await expectRefusal(bench, 'the NBD server of the source does not', bench.words(...server));
  });
});

describe('a migration with bitmaps that was killed', () => {
  it('is not gone on with without them, but called off', async () => {
    const scope = testScope();
    const bench = await BitmapMigration.start(scope, { seed: 5 });
    const monitor = bench.source.daemon.qmpPath;
    const child = startDiskferry(bench.words('--speed', '64k'));
    let job = '';
    await waitUntil(
      async () => {
        const [found] = await bench.source.qmp.execute<{ id: string }[]>('query-jobs');
        job = found?.id ?? '';
        return job !== '';
      },
      { what: () => 'the job' },
    );
    child.kill('SIGKILL');
    await once(child, 'close');
    const on = await diskferry(['migrate', '--from', monitor, '--job', job]);
    expect(on).toMatchObject({ code: 1, stdout: '' });
    expect(on.stderr).toContain("the disk's bitmaps would stay behind");
    const again = await diskferry(bench.words());
    expect(again.stderr).toContain(`'diskferry cancel ${monitor} ${job}' calls it off`);
    expect(again.stderr).not.toContain('--job');
    const done = await diskferry(['cancel', monitor, job]);
    expect(done).toMatchObject({ code: 0, stdout: `called off: '${job}'\n`, stderr: '' });
    expect(await inventory(bench.source)).toEqual({ nodes: ['disk', 'file'], exports: ['disk'] });
    expect(await diskferry(bench.words())).toMatchObject({ code: 0 });
  });
});

describe('a source that QEMU serves', () => {
  it('has to be told with its NBD server', async () => {
    const source: SideOptions = { program: 'qemu-storage-daemon' };
    const bench = await BitmapMigration.start(testScope(), { seed: 1, source });
    await expectRefusal(bench, '--from-nbd URI tells where the NBD server of the source is');
  });
});

describe('bitmaps are carried along', () => {
  it.each(['diskferryd', 'qemu-storage-daemon'] as const)(
    'from a %s without NBD server, which has none afterwards',
    async (program) => {
      const bench = await BitmapMigration.start(testScope(), { seed: 3, source: { program } });
      await bench.source.qmp.execute('nbd-server-stop');
      const before = await bitmapsOf(bench.source);
      const moved = await diskferry(bench.words('--copy-mode', 'background'));
      expect(moved).toMatchObject({ code: 0 });
      expect(await bitmapsOf(bench.target)).toEqual(before);
      const addr = { type: 'unix', data: { path: join(bench.source.dir, 'again') } };
      await bench.source.qmp.execute('nbd-server-start', { addr });
    },
  );

  it('from a server on TCP', async () => {
    const bench = await BitmapMigration.start(testScope(), { seed: 3 });
    await bench.source.qmp.execute('nbd-server-stop');
    const addr = { type: 'inet', data: { host: '0.0.0.0', port: '0' } };
    await bench.source.qmp.execute('nbd-server-start', { addr });
    const before = await bitmapsOf(bench.source);
    expect(await diskferry(bench.words())).toMatchObject({ code: 0 });
    expect(await bitmapsOf(bench.target)).toEqual(before);
  });

  it('but for those that a crash has left inconsistent, and they are named', async () => {
    const scope = testScope();
    const bench = await BitmapMigration.start(scope, { seed: 4 });
    // Stored by a proper end, marked as in use by the first change after it.
    await bench.source.daemon.stop();
    const again = await reopen(scope, bench.source);
    await again.qmp.execute('block-dirty-bitmap-clear', { node: 'disk', name: 'daily' });
    await again.daemon.kill();
    const source = await reopen(scope, bench.source);
    await source.qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'fresh' });
    const moved = await diskferry(bench.wordsFrom(source.daemon.qmpPath));
    expect(moved.code).toBe(0);
    for (const name of ['daily', 'old']) {
      expect(moved.stderr).toContain(`bitmap '${name}' is inconsistent and stays behind\n`);
    }
    expect(moved.stdout).toContain("bitmaps on node 'disk' there: fresh\n");
    expect((await bitmapsOf(bench.target)).map(({ name }) => name)).toEqual(['fresh']);
  });

  it('but for one that somebody changes on the way, and that is told', async () => {
    const scope = testScope();
    const bench = await BitmapMigration.start(scope, { seed: 4 });
    const { qmp, daemon, dir } = bench.source;
    const tap = await MonitorTap.start(scope, {
      path: join(dir, 'tap'),
      monitorPath: daemon.qmpPath,
      passing: async (command) => {
        if (command !== 'block-job-complete') return;
        const merge = { node: 'disk', target: 'daily', bitmaps: ['old'] };
        await qmp.execute('block-dirty-bitmap-merge', merge);
      },
    });
    const moved = await diskferry(bench.wordsFrom(tap.path));
    expect(moved).toMatchObject({ code: 1, stdout: '' });
    const said = "without bitmaps that somebody changed meanwhile: 'daily'";
    expect(moved.stderr).toContain(`'disk' is now at ${bench.target.uri} ${said}`);
    expect((await bitmapsOf(bench.target)).map(({ name }) => name)).toEqual(['fine', 'old']);
    expect(differsAt(await bench.content(bench.target), bench.model)).toBeUndefined();
  });
});
