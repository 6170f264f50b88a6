// SPDX-License-Identifier: MIT
import { createHash } from 'node:crypto';
import { copyFile, readFile } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { startDaemon } from '../support/daemon.js';
import { makeGuest, runGuest } from '../support/guest.js';
import { MIB, makeImage } from '../support/images.js';
import { runPeer, tryPeer } from '../support/peers.js';
import { type Scope, testScope } from '../support/temp.js';

const DISK_BYTES = 64 * MIB;
/** Files that the guest writes in each part of the way, at least. */
const FILES_EACH = 3;

/**
 * Makes file after file, of random bytes and of lengths that are no multiple of anything, and tells
 * the host each one's checksum once it is synced; every fourth is made again, another one removed.
 * The host answers whether to go on.
 */
const WORKLOAD = `
mount -t tmpfs tmpfs /tmp
mount -t ext4 /dev/vdb /mnt
say() { answer=$(echo "$*" | nc 10.0.2.2 $port); }
number=0 answer=go
while [ "$answer" = go ]; do
  number=$((number + 1))
  head -c $((60000 + number * 777)) /dev/urandom > /tmp/file
  cp /tmp/file /mnt/file-$number
  [ $((number % 4)) -ne 0 ] || { head -c 5000 /dev/urandom >> /tmp/file; cat /tmp/file > /mnt/file-$number; }
  echo $number > /mnt/scratch; sync; rm /mnt/scratch; sync
  say file-$number $(sha256sum < /tmp/file)
done
echo 3 > /proc/sys/vm/drop_caches
for file in /mnt/file-*; do echo "guest: sum $(basename $file) $(sha256sum < $file)"; done
umount /mnt
e2fsck -f -p /dev/vdb && echo 'guest: data disk clean'
`;

/** What the guest told the host: each file that it has written and synced. */
class Ledger {
  readonly sums = new Map<string, string>();
  #waiting: { readonly count: number; readonly resolve: () => void } | undefined;
  #answer = 'go';

  /** Waits until the guest has told of that many more files than up to now. */
  more(count: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = { count: this.sums.size + count, resolve };
    });
  }

  /** The guest's next file is its last. */
  end(): void {
    this.#answer = 'stop';
  }

  take(line: string): string {
    const [name = '', sum = ''] = line.split(' ');
    this.sums.set(name, sum);
    if (this.#waiting !== undefined && this.sums.size >= this.#waiting.count) {
      this.#waiting.resolve();
      this.#waiting = undefined;
    }
    return `${this.#answer}\n`;
  }
}

/** Listens for the guest. @returns the port */
async function listen(scope: Scope, ledger: Ledger): Promise<number> {
  const sockets = new Set<Socket>();
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    let text = '';
    socket.on('error', () => socket.destroy());
    socket.on('close', () => sockets.delete(socket));
    socket.setEncoding('utf8').on('data', (piece: string) => {
      text += piece;
      if (text.endsWith('\n')) socket.end(ledger.take(text));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  scope.defer(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}

async function startSide(scope: Scope, image: string, socket: string) {
  return startDaemon(scope, [
    ...['--blockdev', `driver=file,node-name=file,filename=${image},discard=unmap`],
    ...['--blockdev', 'driver=raw,node-name=disk,file=file,discard=unmap'],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'type=nbd,id=disk,node-name=disk,name=disk,writable=on'],
  ]);
}

async function sha256(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
}

test('a Linux guest goes on writing files while its disk is moved to another daemon', async () => {
  const scope = testScope();
  const dir = await scope.tempDir();
  const [oldImage, newImage] = [join(dir, 'old.img'), join(dir, 'new.img')];
  const [oldSocket, newSocket] = [join(dir, 'old.sock'), join(dir, 'new.sock')];
  await makeImage(oldImage, { size: DISK_BYTES });
  await runPeer('mkfs.ext4', ['-q', oldImage]);
  await makeImage(newImage, { size: DISK_BYTES });
  const source = await startSide(scope, oldImage, oldSocket);
  const target = await startSide(scope, newImage, newSocket);
  const qmp = await source.qmp(scope);
  const ledger = new Ledger();
  const port = await listen(scope, ledger);
  const guest = await makeGuest(scope, WORKLOAD);

  const started = ledger.more(FILES_EACH);
  const running = runGuest(guest, {
    rootBlockdev: `driver=file,node-name=root,filename=${guest.rootDisk}`,
    dataBlockdev: `driver=nbd,node-name=data,export=disk,server.type=unix,server.path=${oldSocket}`,
    variables: { port },
  });
  /** What the guest does next, or its end, if that comes first. */
  const meanwhile = async (done: Promise<unknown>): Promise<void> => {
    const early = running.then((text) => Promise.reject(new Error(`the guest ended:\n${text}`)));
    await Promise.race([done, early]);
  };
  await meanwhile(started);
  await qmp.execute('blockdev-add', {
    ...{ driver: 'nbd', 'node-name': 'remote', export: 'disk', discard: 'unmap' },
    server: { type: 'unix', path: newSocket },
  });
  const job = { 'job-id': 'move', device: 'disk', target: 'remote', 'auto-dismiss': false };
  await qmp.execute('blockdev-mirror', { ...job, sync: 'full', speed: 256 * 1024 });
  await meanwhile(ledger.more(FILES_EACH));
  await qmp.execute('block-job-set-speed', { device: 'move', speed: 0 });
  await meanwhile(qmp.event('BLOCK_JOB_READY'));
  await meanwhile(ledger.more(FILES_EACH));
  const before = new Set(ledger.sums.keys());
  await qmp.execute('block-job-complete', { device: 'move' });
  await meanwhile(qmp.event('JOB_STATUS_CHANGE', ({ status }) => status === 'concluded'));
  const [ended] = await qmp.execute<{ error?: string }[]>('query-jobs');
  expect(ended?.error).toBeUndefined();
  await qmp.execute('job-dismiss', { id: 'move' });
  const left = await sha256(oldImage);
  await meanwhile(ledger.more(FILES_EACH));
  ledger.end();
  const consoleText = await running;
  const told = [...ledger.sums].map(([name, sum]) => `guest: sum ${name} ${sum}  -`);

  const said = consoleText.match(/guest: .*/g) ?? [];
  expect([...said].sort(), consoleText).toEqual(
    [...told, 'guest: data disk clean', 'guest: root disk clean', 'guest: status 0'].sort(),
  );
  expect(ledger.sums.size).toBeGreaterThanOrEqual(4 * FILES_EACH);
  expect(await sha256(oldImage)).toBe(left);
  await source.stop();
  await target.stop();
  expect(await sha256(oldImage)).toBe(left);
  await checkFiles(newImage, ledger.sums);
  await checkCrashed(
    scope,
    oldImage,
    [...ledger.sums].filter(([name]) => before.has(name)),
  );
}, 400_000);

/** The file system is clean, and has each file as it was told. */
async function checkFiles(image: string, sums: Iterable<readonly [string, string]>) {
  const check = await tryPeer('e2fsck', ['-f', '-n', image]);
  expect(`${check.code}`, check.stdout).toBe('0');
  for (const [name, sum] of sums) {
    const { stdoutBytes } = await runPeer('debugfs', ['-R', `cat /${name}`, image]);
    expect(`${name} ${createHash('sha256').update(stdoutBytes).digest('hex')}`).toBe(
      `${name} ${sum}`,
    );
  }
}

/** What was left behind is the disk of one instant: as after a power cut, with all that was synced. */
async function checkCrashed(
  scope: Scope,
  image: string,
  sums: Iterable<readonly [string, string]>,
): Promise<void> {
  const copy = join(await scope.tempDir(), 'copy.img');
  await copyFile(image, copy);
  await tryPeer('e2fsck', ['-f', '-p', copy]);
  await checkFiles(copy, sums);
}
