// SPDX-License-Identifier: MIT
/** scripts/bench images: that it measures what it says; how fast anything is, no test asks. */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { imagePath, makeKind } from '../../scripts/benchmark/images/make-images.js';
import { makeImage } from '../../scripts/benchmark/measure.js';
import { MIB } from '../support/images.js';
import { runPeer, runPeerJson, tryPeer } from '../support/peers.js';
import { type Scope, testScope } from '../support/temp.js';

const BENCH = fileURLToPath(new URL('../../dist/scripts/bench.js', import.meta.url));
const SMALL = ['--quick', '--size', '8'];

/** Runs the benchmark with small images. @returns its report */
async function bench(scope: Scope, ...args: readonly string[]): Promise<string> {
  const dir = await scope.tempDir();
  const out = join(await scope.tempDir(), 'report.md');
  await runPeer(process.execPath, [BENCH, 'images', ...args, '--dir', dir, '--out', out]);
  expect(await readdir(dir)).toEqual([]);
  return readFile(out, 'utf8');
}

/** Figures of a cell's row, in the order of the columns. */
function row(report: string, cell: string): string[] {
  const line = report.split('\n').findLast((text) => text.startsWith(`| ${cell} |`));
  expect(line, `the row of '${cell}'`).toBeDefined();
  return (line ?? '')
    .split('|')
    .slice(2, -1)
    .map((text) => text.trim());
}

describe('scripts/bench images', () => {
  it('reads through a chain on all three servers', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'chain3 4k-randread');
    const figures = row(report, 'chain3 4k-randread-d32');
    for (const rate of figures.slice(0, 3)) expect(rate).toMatch(/^\d+\/s$/);
    for (const factor of figures.slice(3, 5)) expect(factor).toMatch(/^\d+\.\d\d×$/);
    expect(report).not.toContain('failed:');
  });

  it('allocates in a fresh copy for each server', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'half 64k-write');
    for (const rate of row(report, 'half 64k-write-d32').slice(0, 3)) {
      expect(rate).toMatch(/^\d+ MB\/s$/);
    }
    expect(report).not.toContain('failed:');
  });

  it('converts both ways, and puts its summary between the markers', async () => {
    const scope = testScope();
    const readme = join(await scope.tempDir(), 'README.md');
    await writeFile(readme, 'before\n<!-- bench:images -->\nold\n<!-- /bench:images -->\nafter\n');
    const report = await bench(scope, ...SMALL, '--only', 'convert sparse', '--readme', readme);
    for (const cell of ['raw to qcow2', 'qcow2 to raw', 'qcow2 to qcow2']) {
      const figures = row(report, `convert sparse ${cell}`);
      for (const seconds of figures.slice(0, 2)) expect(seconds).toMatch(/^\d+\.\d{3}$/);
    }
    expect(report).not.toContain('failed:');
    expect(await readFile(readme, 'utf8')).toMatch(
      /^before\n<!-- bench:images -->\n\nMade by .*img convert .*\n<!-- \/bench:images -->\nafter\n$/s,
    );
  });

  it('opens an image of 64 TiB in both daemons', async () => {
    const report = await bench(testScope(), ...SMALL, '--only', 'open 64 TiB, 64');
    for (const figure of row(report, 'open 64 TiB, 64 KiB clusters')) {
      expect(figure).toMatch(/^\d+\.\d$/);
    }
    expect(report).not.toContain('failed:');
  });

  it('makes chains whose layers hold a share each', async () => {
    const set = { dir: await testScope().tempDir(), size: 4 * MIB };
    await makeImage(imagePath(set, 'raw'), { size: set.size });
    await makeKind(set, 'chain3');
    const image = imagePath(set, 'chain3');
    const map = await runPeerJson<{ depth: number }[]>('qemu-img', ['map', '--output=json', image]);
    expect([...new Set(map.map(({ depth }) => depth))].sort()).toEqual([0, 1, 2, 3]);
  });

  it('refuses options of the other benchmarks', async () => {
    const args = [BENCH, 'images', '--servers', 'nbdkit'];
    const { code, stderr } = await tryPeer(process.execPath, args);
    expect(code).toBe(1);
    expect(stderr).toBe('bench: scripts/bench images has no option --servers\n');
  });
});
