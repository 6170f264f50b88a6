// SPDX-License-Identifier: MIT
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { makeGuest, runGuest } from '../support/guest.js';
import { MIB, makeImage } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { testScope } from '../support/temp.js';

/** `seq` gives the same bytes on both sides, so the host can compute what the guest wrote. */
const FILE_LINES = 200_000;

const TEST_BODY = `
grep -q '^/dev/vda / ext4 ' /proc/mounts && echo 'guest: runs from the root disk'
seq 1 ${FILE_LINES} > /on-root; sync; echo 3 > /proc/sys/vm/drop_caches
echo "guest: root sum $(sha256sum < /on-root)"
nbd-client 10.0.2.2 $port /dev/nbd0 -N data -b 4096 -C 2
echo "guest: attached $(blockdev --getsize64 /dev/nbd0)"
mkfs.ext4 -q /dev/nbd0
mount -t ext4 -o discard /dev/nbd0 /mnt
seq 1 ${FILE_LINES} > /mnt/numbers
seq 1 ${FILE_LINES} > /mnt/deleted
sync
rm /mnt/deleted
fstrim -v /mnt
umount /mnt
e2fsck -f -p /dev/nbd0
mount -t ext4 -o ro /dev/nbd0 /mnt
echo "guest: data sum $(sha256sum < /mnt/numbers)"
umount /mnt
sync
nbd-client -d /dev/nbd0
nbd-client -c /dev/nbd0 || echo 'guest: detached'
`;

test('a Linux guest runs from one export and makes a file system on another', async () => {
  const scope = testScope();
  const guest = await makeGuest(scope, TEST_BODY);
  const dir = await scope.tempDir();
  const data = join(dir, 'data.img');
  await makeImage(data, { size: 64 * MIB });
  const daemon = await startDaemon(scope, [
    ...['--blockdev', `driver=file,node-name=root-file,filename=${guest.rootDisk},discard=unmap`],
    ...['--blockdev', 'driver=raw,node-name=root,file=root-file,discard=unmap'],
    ...['--blockdev', `driver=file,node-name=data-file,filename=${data},discard=unmap`],
    ...['--blockdev', 'driver=raw,node-name=data,file=data-file,discard=unmap'],
    ...['--nbd-server', 'addr.type=inet,addr.host=127.0.0.1,addr.port=0'],
    ...['--export', 'type=nbd,id=root,node-name=root,name=root,writable=on'],
    ...['--export', 'type=nbd,id=data,node-name=data,name=data,writable=on'],
  ]);
  const [port = 0] = await daemon.tcpPorts();

  const server = `server.type=inet,server.host=127.0.0.1,server.port=${port}`;
  const consoleText = await runGuest(guest, {
    rootBlockdev: `driver=nbd,node-name=root,export=root,${server}`,
    variables: { port },
  });
  const content = Array.from({ length: FILE_LINES }, (_, i) => `${i + 1}\n`).join('');
  const sum = createHash('sha256').update(content).digest('hex');
  expect(consoleText.match(/guest: .*/g), consoleText).toEqual([
    'guest: runs from the root disk',
    `guest: root sum ${sum}  -`,
    `guest: attached ${64 * MIB}`,
    `guest: data sum ${sum}  -`,
    'guest: detached',
    'guest: status 0',
    'guest: root disk clean',
  ]);

  await daemon.stop();
  for (const [image, name] of [
    [guest.rootDisk, 'on-root'],
    [data, 'numbers'],
  ] as const) {
    const check = await tryPeer('e2fsck', ['-f', '-n', image]);
    expect(`${check.code}`, check.stdout).toBe('0');
    const dumped = await runPeer('debugfs', ['-R', `cat /${name}`, image]);
    expect(dumped.stdout === content, `${name} read back on the host`).toBe(true);
  }
}, 400_000);
