// SPDX-License-Identifier: MIT
/** The diskferry command against running daemons: what it prints, and with what status it ends. */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, it } from 'vitest';
import { waitUntil } from '../support/daemon.js';
import { diskferry, startDiskferry } from '../support/diskferry.js';
import { firstDifference, MIB } from '../support/images.js';
import { collect, runPeer } from '../support/peers.js';
import { QmpClient } from '../support/qmp-client.js';
import { type ServedImage, type ServedImageOptions, serveImage } from '../support/served-image.js';
import { type Scope, testScope } from '../support/temp.js';

const SIZE = 32 * MIB;
const DATA = [
  { offset: 0, length: 3 * MIB },
  { offset: 20 * MIB, length: MIB },
];

interface Command {
  readonly execute: string;
  readonly arguments?: Readonly<Record<string, string>>;
  readonly id?: number;
}

interface Node {
  readonly 'node-name': string;
}

/** An image in a daemon with a second monitor, because one serves one client at a time. */
interface Watched extends ServedImage {
  readonly watchPath: string;
}

async function serveWatched(scope: Scope, options: ServedImageOptions): Promise<Watched> {
  const watchPath = join(await scope.tempDir(), 'watch.qmp');
  const chardev = `socket,id=watch,path=${watchPath},server=on,wait=off`;
  const args = ['--chardev', chardev, '--monitor', 'watch'];
  return { ...(await serveImage(scope, { ...options, args })), watchPath };
}

async function nodeNames({ watchPath }: Watched): Promise<string[]> {
  const qmp = await QmpClient.connect(watchPath);
  try {
    const nodes = await qmp.execute<Node[]>('query-named-block-nodes');
    return nodes.map((node) => node['node-name']).sort();
  } finally {
    qmp.close();
  }
}

/** Two daemons: one with an image that has data, one with an empty one. */
async function sourceAndTarget(scope: Scope, targetSize = SIZE) {
  const source = await serveWatched(scope, { size: SIZE, data: DATA });
  const target = await serveImage(scope, { size: targetSize });
  return { source, target };
}

const migration = (source: ServedImage, to: string, ...options: string[]): string[] => [
  ...['migrate', '--from', source.daemon.qmpPath, '--node', 'disk', '--to', to],
  ...options,
];

describe('diskferry', () => {
  it.each([
    ['migrate', '--speed BYTES', '--image-opts'],
    ['qmp', 'KEY=VALUE', '--speed'],
    ['jobs', "a daemon's jobs", '--speed'],
    ['cancel', 'MONITOR JOB', '--speed'],
    ['img', 'convert [-f FMT]', '--speed'],
    ['img convert', '--target-is-zero', '--shrink'],
    ['img resize', '--shrink', '--target-is-zero'],
    ['img dd', 'skip=N', '--shrink'],
  ])('tells how %s is used, and of nothing else', async (command, has, hasNot) => {
    const words = command.split(' ');
    const { code, stdout, stderr } = await diskferry([...words, '--help']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout.split('\n')[0]).toMatch(new RegExp(`^Usage: diskferry ${command} `));
    expect(stdout).toContain(has);
    expect(stdout).not.toContain(hasNot);
    for (const other of [
      [...words, '-h'],
      ['help', ...words],
    ]) {
      expect(await diskferry(other)).toMatchObject({ code: 0, stdout });
    }
  });

  it('tells how it is used, and its version', async () => {
    const { version } = JSON.parse(
      readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
    ) as { version: string };
    for (const words of [['--help'], ['-h'], ['help']]) {
      const help = await diskferry(words);
      expect(help).toMatchObject({ code: 0, stderr: '' });
      expect(help.stdout).toContain('Usage: diskferry COMMAND');
    }
    const told = await diskferry(['--version']);
    expect(told).toMatchObject({ code: 0, stdout: `diskferry version ${version}\n`, stderr: '' });
  });

  it.each([
    [[], 'no command given'],
    [['move'], "unknown command 'move'"],
    [['--verbose'], "unknown option '--verbose'"],
    [['migrate', '--form', 'x'], "Unknown option '--form'"],
    [['migrate', 'x'], "Unexpected argument 'x'"],
    [['migrate', '--from', 'x'], 'migrate needs --from MONITOR, --node NAME and --to URI'],
    [['migrate', '--from', 'x', '--node', 'n', '--to', 'host-b'], 'host-b'],
    [['migrate', '--from', 'x', '--node', 'n', '--to', 'wss://h/x'], 'diskferry has no TLS'],
    [['migrate', '--from', 'x', '--node', 'n', '--to', 'nbds://h/x'], 'diskferry has no TLS'],
    [['qmp', 'x'], 'usage: diskferry qmp MONITOR COMMAND'],
    [['qmp', '/nonexistent/qmp', 'quit'], "no QMP monitor at '/nonexistent/qmp'"],
  ])('refuses %j in one line that names what is wrong', async (words, text) => {
    const { code, stdout, stderr } = await diskferry(words);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^diskferry: [^\n]*\n$/);
    expect(stderr).toContain(text);
  });
});

describe('diskferry qmp', () => {
  it('prints what a command returns, and the words of its error with status 1', async () => {
    const scope = testScope();
    const { daemon, socketPath } = await serveImage(scope, { size: SIZE });
    const add = ['block-export-add', 'type=nbd', 'id=e1', 'node-name=disk', 'name=second'];
    const added = await diskferry(['qmp', daemon.qmpPath, ...add]);
    expect(added).toMatchObject({ code: 0, stdout: '{}\n', stderr: '' });
    const list = await runPeer('nbdinfo', ['--list', '--json', `nbd+unix://?socket=${socketPath}`]);
    expect(list.stdout).toContain('"second"');
    const removed = await diskferry(['qmp', daemon.qmpPath, 'block-export-del', 'id=nope']);
    expect(removed.code).toBe(1);
    expect(removed.stderr).toBe("diskferry: Export 'nope' is not found\n");
  });
});

describe('diskferry migrate', () => {
  it('moves a disk, and its users write to the target from then on', async () => {
    const scope = testScope();
    const { source, target } = await sourceAndTarget(scope);
    const moved = await diskferry(migration(source, target.uri));
    expect(moved.stderr).toContain('disk 100%');
    expect(moved.code).toBe(0);
    expect(moved.stdout).toContain(`migrated: 'disk' is now at ${target.uri}`);
    expect(await firstDifference(source.path, target.path)).toBeUndefined();
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 4k', source.uri]);
    expect(await firstDifference(source.path, target.path)).toBe(MIB);
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'read -P 7 1M 4k', target.uri]);
  });

  it('leaves the users on the source, and nothing of itself, with --copy-only', async () => {
    const scope = testScope();
    const { source, target } = await sourceAndTarget(scope);
    const before = await nodeNames(source);
    const copied = await diskferry(migration(source, target.uri, '--copy-only', '--speed', '1G'));
    expect(copied).toMatchObject({ code: 0, stdout: `copied: 'disk' to ${target.uri}\n` });
    expect(await firstDifference(source.path, target.path)).toBeUndefined();
    expect(await nodeNames(source)).toEqual(before);
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 4k', source.uri]);
    expect(await firstDifference(source.path, target.path)).toBe(MIB);
  });

  it('takes a mode of copying, and refuses one that there is not', async () => {
    const scope = testScope();
    const { source, target } = await sourceAndTarget(scope);
    const refused = await diskferry(migration(source, target.uri, '--copy-mode', 'sometimes'));
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toContain("--copy-mode 'sometimes': one of background, write-blocking");
    const done = await diskferry(migration(source, target.uri, '--copy-mode', 'write-blocking'));
    expect(done.code).toBe(0);
    expect(await firstDifference(source.path, target.path)).toBeUndefined();
  });

  it('refuses a target of another size, a node or a server that is not there', async () => {
    const scope = testScope();
    const { source, target } = await sourceAndTarget(scope, SIZE / 2);
    const before = await nodeNames(source);
    const nowhere = `nbd+unix:///disk?socket=${join(source.dir, 'none')}`;
    const nobody = migration(source, target.uri).map((word) => (word === 'disk' ? 'nope' : word));
    for (const [words, text] of [
      [migration(source, target.uri), 'different sizes'],
      [migration(source, nowhere), 'none'],
      [migration(source, target.uri.replace('///disk', '///other')), 'other'],
      [nobody, "'nope'"],
    ] as const) {
      const { code, stdout, stderr } = await diskferry(words);
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toContain(text);
      expect(await nodeNames(source)).toEqual(before);
    }
  });
});

describe('a migration under way', () => {
  /** One that would take minutes, once its job copies. */
  async function slowMigration(scope: Scope) {
    const { source, target } = await sourceAndTarget(scope);
    const before = await nodeNames(source);
    const child = startDiskferry(migration(source, target.uri, '--speed', '64k'));
    const ended = once(child, 'close') as Promise<[number | null]>;
    const output = { stdout: collect(child.stdout), stderr: collect(child.stderr) };
    await waitUntil(async () => (await nodeNames(source)).length > before.length + 1, {
      what: () => `the job's filter; the command said:\n${output.stderr.text()}`,
    });
    return { source, target, before, child, ended, output };
  }

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('is called off by %s: the disk stays, nothing is left', async (signal, status) => {
    const scope = testScope();
    const { source, before, child, ended, output } = await slowMigration(scope);
    child.kill(signal);
    expect((await ended)[0]).toBe(status);
    expect(output.stderr.text()).toContain("called off: 'disk' is where it was");
    expect(output.stdout.text()).toBe('');
    expect(await nodeNames(source)).toEqual(before);
    const jobs = await diskferry(['qmp', source.daemon.qmpPath, 'query-jobs']);
    expect(jobs.stdout).toBe('[]\n');
  });

  /** A migration that was killed; what it began goes on in the daemon. */
  async function killedMigration(scope: Scope) {
    const { child, ended, ...rest } = await slowMigration(scope);
    child.kill('SIGKILL');
    await ended;
    return { ...rest, job: `job-migrate-${child.pid}`, monitor: rest.source.daemon.qmpPath };
  }

  it('that was killed is named to whoever begins another, and called off on demand', async () => {
    const scope = testScope();
    const { source, target, before, job, monitor } = await killedMigration(scope);
    const listed = await diskferry(['jobs', monitor]);
    expect(listed.stdout).toMatch(new RegExp(`^${job}  mirror  running  \\d+%  `));
    const again = await diskferry(migration(source, target.uri));
    expect(again.code).toBe(1);
    expect(again.stderr).toContain(`'diskferry migrate --from ${monitor} --job ${job}'`);
    expect(again.stderr).toContain(`'diskferry cancel ${monitor} ${job}'`);
    const done = await diskferry(['cancel', monitor, job]);
    expect(done).toMatchObject({ code: 0, stdout: `called off: '${job}'\n`, stderr: '' });
    expect(await nodeNames(source)).toEqual(before);
    expect((await diskferry(['jobs', monitor])).stdout).toBe('');
    expect((await diskferry(['cancel', monitor, job])).stderr).toContain(
      `there is no job '${job}'`,
    );
  });

  it('that was killed is gone on with', async () => {
    const scope = testScope();
    const { source, target, job, monitor } = await killedMigration(scope);
    await diskferry(['qmp', monitor, 'block-job-set-speed', `device=${job}`, 'speed=0']);
    const { code, stdout } = await diskferry(['migrate', '--from', monitor, '--job', job]);
    const node = job.slice('job-'.length);
    const text = `migrated: 'disk' is now at ${target.uri}; its users here are on node '${node}'\n`;
    expect({ code, stdout }).toEqual({ code: 0, stdout: text });
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 4k', '-c', 'flush', source.uri]);
    expect(await firstDifference(source.path, target.path)).toBe(MIB);
    expect(readFileSync(target.path)[MIB]).toBe(7);
  });

  it('claims nothing of a job that somebody else has ended', async () => {
    const scope = testScope();
    const { source, job, monitor } = await killedMigration(scope);
    await diskferry(['qmp', monitor, 'block-job-set-speed', `device=${job}`, 'speed=0']);
    const state = async () => (await diskferry(['jobs', monitor])).stdout.split('  ')[2];
    await waitUntil(async () => (await state()) === 'ready', { what: () => 'the job to be ready' });
    await diskferry(['qmp', monitor, 'block-job-cancel', `device=${job}`]);
    await waitUntil(async () => (await state()) === 'concluded', { what: () => "the job's end" });
    const { code, stdout, stderr } = await diskferry(['migrate', '--from', monitor, '--job', job]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain(`somebody else has ended the job '${job}'`);
    expect(await nodeNames(source)).toContain(job.slice('job-'.length));
  });

  it('is called off by a signal that comes while the monitor says nothing', async () => {
    const scope = testScope();
    const path = join(await scope.tempDir(), 'qmp');
    const silent = createServer();
    scope.defer(() => silent.close());
    await once(silent.listen(path), 'listening');
    const to = 'nbd://host-b/disk';
    const child = startDiskferry(['migrate', '--from', path, '--node', 'disk', '--to', to]);
    const stderr = collect(child.stderr);
    const ended = once(child, 'close') as Promise<[number | null]>;
    await once(silent, 'connection');
    child.kill('SIGINT');
    expect((await ended)[0]).toBe(130);
    expect(stderr.text()).toBe("diskferry: called off: 'disk' is where it was\n");
  });

  it('is no success when the daemon dies', async () => {
    const scope = testScope();
    const { source, ended, output } = await slowMigration(scope);
    await source.daemon.kill();
    expect((await ended)[0]).toBe(1);
    expect(output.stderr.text()).toContain("what became of the migration of 'disk' is not known");
    expect(output.stdout.text()).toBe('');
  });

  it('fails when the target dies, and the disk stays in use on the source', async () => {
    const scope = testScope();
    const { source, target, before, ended, output } = await slowMigration(scope);
    await target.daemon.kill();
    expect((await ended)[0]).toBe(1);
    expect(output.stderr.text()).toContain('the migration failed: ');
    expect(await nodeNames(source)).toEqual(before);
    await runPeer('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 4k', source.uri]);
  });

  it('is no success when the daemon goes away after it was asked to move the users', async () => {
    const scope = testScope();
    const path = await dyingMonitor(scope);
    const to = 'nbd://host-b/disk';
    const words = ['migrate', '--from', path, '--node', 'disk', '--to', to];
    const { code, stdout, stderr } = await diskferry(words);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain("what became of the migration of 'disk' is not known");
  });
});

/** A monitor whose job is ready at once, and that hangs up after the reply to the pivot's command. */
async function dyingMonitor(scope: Scope): Promise<string> {
  const path = join(await scope.tempDir(), 'qmp');
  const server = createServer((socket) => {
    const send = (message: object): boolean => socket.write(`${JSON.stringify(message)}\n`);
    let job = '';
    send({ QMP: { version: {}, capabilities: [] } });
    createInterface(socket).on('line', (line) => {
      const { execute, arguments: args, id } = JSON.parse(line) as Command;
      if (execute === 'blockdev-mirror') job = args?.['job-id'] ?? '';
      const info = { id: job, device: job, status: 'ready', 'current-progress': 1, offset: 1 };
      const jobs = [{ ...info, 'total-progress': 1, len: 1 }];
      send({ return: execute.startsWith('query-') ? jobs : {}, id });
      if (execute === 'block-job-complete') socket.end();
    });
  });
  scope.defer(() => server.close());
  await once(server.listen(path), 'listening');
  return path;
}
