// SPDX-License-Identifier: MIT
/** scripts/bench jobs: that it measures what it says; how fast anything is, no test asks. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, vi } from 'vitest';
import { NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS } from '../../protocol/nbd/constants.js';
import { inTurn } from '../../scripts/benchmark/fair-turns.js';
import { DelayLine, Narrow } from '../../scripts/benchmark/jobs/delay-line.js';
import { type Relay, type RelayOptions, startRelay } from '../../scripts/benchmark/jobs/relay.js';
import { NbdClient } from '../../src/nbd/client/client.js';
import { FakeNbdPeer } from '../support/fake-nbd-peer.js';
import { MIB } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { type Scope, testScope } from '../support/temp.js';

const DIST = new URL('../../dist/scripts/', import.meta.url);
const BENCH = fileURLToPath(new URL('bench.js', DIST));
const RELAY = fileURLToPath(new URL('benchmark/jobs/relay-process.js', DIST));

/** A relay to a server of this process. */
async function relayTo(
  scope: Scope,
  options: Omit<RelayOptions, 'serverPort'>,
  serve: (socket: Socket) => void,
): Promise<Relay> {
  const server = createServer(serve);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  scope.defer(() => new Promise((resolve) => server.close(resolve)));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const relay = await startRelay({ ...options, serverPort: address.port, program: RELAY });
  scope.defer(() => relay.stop());
  return relay;
}

describe('the link', () => {
  it('delays, and carries at one time whatever has entered', () => {
    const line = new DelayLine<number>({
      delayMs: 20,
      narrow: new Narrow(Number.POSITIVE_INFINITY),
    });
    for (let item = 0; item < 1000; item++) line.push(item, MIB, 5);
    expect(line.queued).toBe(1000 * MIB);
    expect(line.nextDue).toBe(25);
    expect(line.take(24.9)).toBeUndefined();
    for (let item = 0; item < 1000; item++) expect(line.take(25)).toBe(item);
    expect(line.queued).toBe(0);
    expect(line.nextDue).toBeUndefined();
  });

  it('lets bytes through at its rate, of all connections together, also after a pause', () => {
    const link = { delayMs: 20, narrow: new Narrow(1000) };
    const line = new DelayLine<string>(link);
    const other = new DelayLine<string>(link);
    line.push('a', 100, 0);
    other.push('b', 50, 10);
    expect(line.nextDue).toBe(120);
    expect(line.take(120)).toBe('a');
    expect(other.nextDue).toBe(170);
    expect(other.take(170)).toBe('b');
    line.push('c', 100, 500);
    expect(line.nextDue).toBe(620);
  });

  /** A server that sends back what it gets, behind a relay. */
  async function relayToEcho(scope: Scope, options: Omit<RelayOptions, 'serverPort'>) {
    const relay = await relayTo(scope, options, (socket) => socket.pipe(socket));
    const client = connect({ host: '127.0.0.1', port: relay.port, noDelay: true });
    scope.defer(() => client.destroy());
    await once(client, 'connect');
    return { relay, client };
  }

  it.each([
    ['any', undefined],
    ['a low', 64 * MIB], // more comes than it holds, so it has to stop reading for a while
  ])(
    'is a process that changes no byte at %s rate, counts them, and passes the end on',
    async (_, bytesPerSecond) => {
      const { relay, client } = await relayToEcho(testScope(), { delayMs: 5, bytesPerSecond });
      const sent = randomBytes(16 * MIB + 7);
      const received: Buffer[] = [];
      client.on('data', (chunk) => received.push(chunk));
      client.end(sent);
      await once(client, 'close');
      expect(Buffer.concat(received).equals(sent)).toBe(true);
      expect(await relay.bytes()).toEqual({ toServer: sent.length, toClient: sent.length });
    },
  );

  it('holds each byte back for the delay, once each way', async () => {
    const { client } = await relayToEcho(testScope(), { delayMs: 40 });
    const begin = performance.now();
    client.write('x');
    await once(client, 'data');
    expect(performance.now() - begin).toBeGreaterThanOrEqual(80);
  });
});

describe('a client behind the link', () => {
  it('knows how long the way is from its handshake, and opens some connections at once', async () => {
    const scope = testScope();
    const flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN;
    const peer = await FakeNbdPeer.start(scope, { flags });
    const relay = await relayTo(scope, { delayMs: 5 }, (socket) => {
      const passed = connect(peer.path);
      passed.on('error', () => socket.destroy());
      socket.on('error', () => passed.destroy());
      socket.pipe(passed).pipe(socket);
    });
    const address = { type: 'inet', host: '127.0.0.1', port: relay.port } as const;
    const client = await NbdClient.connect({ address });
    scope.defer(() => client.close());
    expect(client.roundTripMs).toBeGreaterThanOrEqual(10);
    await vi.waitFor(() => expect(client.connectionCount).toBe(4), 20_000);
  });
});

/** Runs the benchmark with small disks. @returns its report */
async function bench(scope: Scope, ...args: readonly string[]): Promise<string> {
  const dir = await scope.tempDir();
  const out = join(await scope.tempDir(), 'report.md');
  await runPeer(process.execPath, [BENCH, 'jobs', ...args, '--dir', dir, '--out', out]);
  expect(await readdir(dir)).toEqual([]);
  return readFile(out, 'utf8');
}

/** Figures of a cell's row, in the order of the columns. */
function row(report: string, cell: string): string[] {
  const line = report.split('\n').find((text) => text.startsWith(`| ${cell} |`));
  expect(line, `the row of '${cell}'`).toBeDefined();
  return (line ?? '')
    .split('|')
    .slice(2, -1)
    .map((text) => text.trim());
}

const SECONDS = /^\d+\.\d{3}$/;
const SMALL = ['--quick', '--size', '8'];

describe('scripts/bench jobs', () => {
  it('copies on both daemons, over both links, and counts what was sent', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'random to nbdkit memory');
    for (const link of ['loopback', '20 ms']) {
      for (const job of ['mirror', 'backup']) {
        const figures = row(report, `${link} ${job} random to nbdkit memory`);
        for (const seconds of figures.slice(0, 2)) expect(seconds).toMatch(SECONDS);
        for (const sent of figures.slice(-4, -2)) expect(Number(sent)).toBeCloseTo(8, 0);
        expect(figures.slice(-2)).toEqual(['–', '–']);
      }
    }
    expect(report).toMatch(/^\| full copy to nbdkit memory \| \d+\.\d\d× nbdcopy /m);
    expect(report).not.toContain('failed:');
  });

  it('copies what a bitmap marks while a writer goes on', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', '50 %, writer to diskferryd');
    for (const link of ['loopback', '20 ms']) {
      const figures = row(report, `${link} incremental 50 %, writer to diskferryd`);
      for (const seconds of figures.slice(0, 2)) expect(seconds).toMatch(SECONDS);
      for (const sent of figures.slice(-4, -2)) expect(Number(sent)).toBeLessThan(8);
      for (const rate of figures.slice(-2)) expect(Number(rate)).toBeGreaterThan(0.1);
    }
    expect(report).not.toContain('failed:');
  });

  it('sends no zeroes of a sparse disk, and puts its summary between the markers', async () => {
    const scope = testScope();
    const readme = join(await scope.tempDir(), 'README.md');
    await writeFile(readme, 'before\n<!-- bench:jobs -->\nold\n<!-- /bench:jobs -->\nafter\n');
    const only = ['--only', 'loopback mirror sparse to qemu-storage-daemon'];
    const report = await bench(scope, ...SMALL, ...only, '--readme', readme);
    const sent = row(report, 'loopback mirror sparse to qemu-storage-daemon').slice(-4, -2);
    for (const mebibytes of sent) expect(Number(mebibytes)).toBeCloseTo(1, 1);
    const text = await readFile(readme, 'utf8');
    expect(text).toMatch(
      /^before\n<!-- bench:jobs -->\n\nMade by .*\n<!-- \/bench:jobs -->\nafter\n$/s,
    );
    expect(text).not.toContain('old');
  });

  it('reads beside a mirror', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'latency');
    for (const daemon of ['diskferryd', 'qemu-storage-daemon']) {
      const [grows] = row(report, `p99 of reads during a mirror, ${daemon}`);
      expect(grows).toMatch(/^\d+\.\d\d× its idle value$/);
    }
  });

  it('streams, commits and copies chains of qcow2, on both daemons', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'chain');
    for (const job of ['stream', 'commit', 'active commit', 'mirror', 'backup to qcow2']) {
      for (const seconds of row(report, `chain ${job}`).slice(0, 2))
        expect(seconds).toMatch(SECONDS);
    }
    expect(report).not.toContain('failed:');
  });

  it('lets each be first once in so many turns', () => {
    const turns = [0, 1, 2, 3].map((turn) => inTurn(['a', 'b', 'c'], turn).join(''));
    expect(turns).toEqual(['abc', 'bca', 'cab', 'abc']);
  });

  it('refuses options of the other benchmark', async () => {
    const { code, stderr } = await tryPeer(process.execPath, [BENCH, 'jobs', '--seconds', '1']);
    expect(code).toBe(1);
    expect(stderr).toBe('bench: scripts/bench jobs has no option --seconds\n');
  });
});
