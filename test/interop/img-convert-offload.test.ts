// SPDX-License-Identifier: MIT
/** `diskferry img convert -C` beside qemu-img's. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { diskferry } from '../support/diskferry.js';
import { allocatedBytes, patternBytes } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { createImage, expectSound, KIB, MIB, qemuIo } from '../support/qcow2.js';
import { type Scope, testScope } from '../support/temp.js';

/** Bytes of zeroes that the source has written: only who looks at them makes holes of them. */
const WRITTEN_ZEROES = 4 * MIB;

let scope: Scope;
let path: (name: string) => string;

/** Noise, a hole, written zeroes, and an end that is no cluster's. */
beforeEach(async () => {
  scope = testScope();
  const dir = await scope.tempDir();
  path = (name) => join(dir, name);
  const content = Buffer.alloc(9 * MIB + 1536);
  patternBytes(5 * MIB, 1).copy(content);
  content.write('the end', content.byteLength - 7);
  await writeFile(path('raw'), content);
  const zeroes = `write -P 0 ${5 * MIB} ${WRITTEN_ZEROES}`;
  await runPeer('qemu-io', ['-f', 'raw', '-c', zeroes, path('raw')]);
});

const convert = (...args: string[]) => diskferry(['img', 'convert', '-C', ...args]);

async function expectSameContent(format: string, image: string, target: string): Promise<void> {
  const formats = ['-f', format, '-F', target === 'raw' ? 'raw' : 'qcow2'];
  const compared = await tryPeer('qemu-img', ['compare', ...formats, image, path('out')]);
  expect(compared).toMatchObject({ code: 0, stdout: 'Images are identical.\n' });
  if (target !== 'raw') await expectSound(path('out'));
}

describe('diskferry img convert -C', () => {
  it.each([
    ['raw', 'raw', ''],
    ['raw', 'qcow2', ''],
    ['raw', 'qcow2', 'cluster_size=4k'],
    ['raw', 'qcow2', 'cluster_size=2M'],
    ['raw', 'qcow2', 'extended_l2=on'],
    ['raw', 'qcow2', 'preallocation=metadata'],
    ['raw', 'qcow2', 'compat=0.10'],
    ['qcow2', 'raw', ''],
    ['qcow2', 'qcow2', ''],
  ])('copies %s to %s (%s), and all of it', async (from, to, options) => {
    if (from === 'qcow2') {
      await runPeer('qemu-img', ['convert', '-f', 'raw', '-O', from, path('raw'), path(from)]);
    }
    const more = options === '' ? [] : ['-o', options];
    const done = await convert('-f', from, '-O', to, ...more, path(from), path('out'));
    expect(done).toMatchObject({ code: 0, stderr: '' });
    await expectSameContent(from, path(from), to);
  });

  it('has the system copy what is data, and does not look for zeroes in it', async () => {
    expect(await convert('-f', 'raw', '-O', 'raw', path('raw'), path('out'))).toMatchObject({
      code: 0,
    });
    expect(await allocatedBytes(path('out'))).toBeGreaterThan(5 * MIB + WRITTEN_ZEROES - KIB);
    await diskferry(['img', 'convert', '-f', 'raw', '-O', 'raw', path('raw'), path('looked')]);
    expect(await allocatedBytes(path('looked'))).toBeLessThan(6 * MIB);
  });

  it('puts it into clusters of a qcow2 image by the system, too', async () => {
    await convert('-f', 'raw', '-O', 'qcow2', path('raw'), path('out'));
    expect(await allocatedBytes(path('out'))).toBeGreaterThan(4 * MIB + WRITTEN_ZEROES);
  });

  it('copies a chain of images, each layer from its own file', async () => {
    await createImage(path('top'), 9 * MIB + 1536, '', ['-b', path('raw'), '-F', 'raw']);
    await qemuIo(path('top'), ['write -P 7 1M 1M', 'write -P 8 2100k 70k', 'write -z 3M 1M']);
    const done = await convert('-f', 'qcow2', '-O', 'qcow2', path('top'), path('out'));
    expect(done).toMatchObject({ code: 0 });
    await expectSameContent('qcow2', path('top'), 'qcow2');
  });

  it('copies what the top layer has above the same backing file', async () => {
    await createImage(path('top'), 9 * MIB + 1536, '', ['-b', path('raw'), '-F', 'raw']);
    await qemuIo(path('top'), ['write -P 7 1M 1M', 'write -P 8 2100k 70k']);
    const backing = ['-B', path('raw'), '-F', 'raw'];
    const done = await convert('-f', 'qcow2', '-O', 'qcow2', ...backing, path('top'), path('out'));
    expect(done).toMatchObject({ code: 0 });
    await expectSameContent('qcow2', path('top'), 'qcow2');
    expect(await allocatedBytes(path('out'))).toBeLessThan(3 * MIB);
  });

  it('copies several images into one, and compressed ones, which have to be read', async () => {
    await runPeer('qemu-img', ['convert', '-c', '-O', 'qcow2', path('raw'), path('packed')]);
    await runPeer('qemu-img', ['convert', path('raw'), path('packed'), path('expected')]);
    const done = await convert(path('raw'), path('packed'), path('out'));
    expect(done).toMatchObject({ code: 0 });
    await expectSameContent('raw', path('expected'), 'raw');
  });

  it('reads and writes where the two files have no way between them', async () => {
    const folder = await mkdtemp('/dev/shm/diskferry-');
    scope.defer(() => rm(folder, { recursive: true }));
    for (const format of ['raw', 'qcow2']) {
      const target = join(folder, format);
      const done = await convert('-f', 'raw', '-O', format, path('raw'), target);
      expect(done).toMatchObject({ code: 0, stderr: '' });
      const formats = ['-f', 'raw', '-F', format];
      expect(await tryPeer('qemu-img', ['compare', ...formats, path('raw'), target])).toMatchObject(
        {
          code: 0,
        },
      );
      expect(await allocatedBytes(target)).toBeLessThan(6 * MIB);
      if (format === 'qcow2') await expectSound(target);
    }
  });

  it.each(['raw', 'qcow2'])(
    'tells of a full %s target what it tells without -C',
    async (format) => {
      // One that is there: to make a raw one longer than the limit would fail before.
      await runPeer('qemu-img', ['create', '-q', '-f', format, path('out'), '10M']);
      for (const more of [[], ['-C']]) {
        const args = [...more, '-n', '-f', 'raw', '-O', format, path('raw'), path('out')];
        const launcher = [process.execPath, 'dist/src/cli/launch.cjs', 'img', 'convert', ...args];
        const limited = ['-c', 'ulimit -f 3000; exec "$@"', 'bash', ...launcher];
        const { code, stderr } = await tryPeer('bash', limited);
        expect(code).toBe(1);
        expect(stderr).toContain('File too large');
        expect(stderr).toMatch(/write of \d+ bytes at \d+ of '.*out' failed/);
      }
    },
  );

  it.each([
    [['-c', '-O', 'qcow2'], 'Cannot enable copy offloading when -c is used'],
    [['-S', '4k'], 'Cannot enable copy offloading when -S is used'],
    [['--salvage'], 'Cannot use copy offloading in salvaging mode'],
  ])('is refused with %s in the words of qemu-img', async (args, text) => {
    const ours = await convert(...args, path('raw'), path('out'));
    const theirs = await tryPeer('qemu-img', ['convert', '-C', ...args, path('raw'), path('out')]);
    expect(ours).toMatchObject({ code: 1, stdout: '' });
    expect(ours.stderr).toContain(text);
    expect(theirs.stderr).toContain(text);
  });
});
