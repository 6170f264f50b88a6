// SPDX-License-Identifier: MIT
/** Units in which bitmaps and copies count when nothing is said: those of QEMU. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { type MakeImages, sayToBoth } from '../support/dialogue.js';
import { runPeer } from '../support/peers.js';

const CLUSTERS = ['512', '4k', '32k', '2M'] as const;

const makeImages: MakeImages = async (scope) => {
  const dir = await scope.tempDir();
  const args = ['--object', 'throttle-group,id=g'];
  for (const cluster of CLUSTERS) {
    const filename = join(dir, cluster);
    const options = `cluster_size=${cluster}`;
    await runPeer('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, filename, '8M']);
    const name = `c${cluster}`;
    const file = `file.driver=file,file.filename=${filename}`;
    args.push('--blockdev', `driver=qcow2,node-name=${name},${file}`);
    args.push('--blockdev', `driver=throttle,node-name=t${name},throttle-group=g,file=${name}`);
    args.push('--blockdev', `driver=raw,node-name=r${name},file=t${name}`);
  }
  args.push('--blockdev', 'driver=null-co,node-name=null,size=8388608');
  return { dir, args };
};

it('takes the granularity of a bitmap from the clusters of the image, through filters too', async () => {
  const found = await sayToBoth(makeImages, async ({ qmp }) => {
    const answers: unknown[] = [];
    for (const name of ['null', ...CLUSTERS.flatMap((c) => [`c${c}`, `tc${c}`, `rc${c}`])]) {
      await qmp.execute('block-dirty-bitmap-add', { node: name, name: 'b' });
      const nodes =
        await qmp.execute<{ 'node-name': string; 'dirty-bitmaps'?: { granularity: number }[] }[]>(
          'query-named-block-nodes',
        );
      const node = nodes.find((each) => each['node-name'] === name);
      answers.push([name, node?.['dirty-bitmaps']?.[0]?.granularity]);
    }
    return answers;
  });
  expect(found[1]).toEqual(['c512', 4096]);
});

it('asks a backup for chunks no shorter than a cluster of the target', async () => {
  await sayToBoth(makeImages, async ({ qmp }) => {
    const answers: unknown[] = [];
    for (const target of CLUSTERS) {
      const backup = { 'job-id': 'j', device: 'null', target: `tc${target}`, sync: 'full' };
      const chunk = { 'x-perf': { 'max-chunk': 32768 } };
      answers.push((await qmp.refused('blockdev-backup', { ...backup, ...chunk })).desc);
    }
    return answers;
  });
});
