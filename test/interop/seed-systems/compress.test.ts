// SPDX-License-Identifier: MIT
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth } from '../../support/dialogue.js';
import { runPeer, runPeerJson } from '../../support/peers.js';
import { createImage, MIB, qemuIo } from '../../support/qcow2.js';
import type { Scope } from '../../support/temp.js';

async function disk(scope: Scope): Promise<{ dir: string; args: string[] }> {
  const dir = await scope.tempDir();
  await createImage(join(dir, 'disk'), 4 * MIB);
  await qemuIo(join(dir, 'disk'), ['write -P 7 1M 1M']);
  const file = `file.driver=file,file.filename=${join(dir, 'disk')}`;
  return { dir, args: ['--blockdev', `qcow2,node-name=disk,${file}`] };
}

it('a backup with compress writes compressed clusters', async () => {
  const clusters = await sayToBoth(disk, async ({ qmp, dir }) => {
    await qmp.execute('drive-backup', {
      ...{ 'job-id': 'j', device: 'disk', target: join(dir, 'copy'), format: 'qcow2' },
      ...{ sync: 'full', compress: true },
    });
    const end = await qmp.event('BLOCK_JOB_COMPLETED');
    expect(end.data?.error).toBeUndefined();
    await qmp.execute('quit');
    await qmp.closedByPeer();
    const pair = [join(dir, 'disk'), join(dir, 'copy')];
    await runPeer('qemu-img', ['compare', '-U', '-f', 'qcow2', '-F', 'qcow2', ...pair]);
    const args = ['check', '-U', '--output=json', join(dir, 'copy')];
    return (await runPeerJson<Record<string, unknown>>('qemu-img', args))['compressed-clusters'];
  });
  expect(clusters).toBe(16);
});
