// SPDX-License-Identifier: MIT
import { copyFile, cp, mkdir, readdir, readFile, realpath, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { PEER_PATH, runPeer, tryPeer } from './peers.js';
import type { Scope } from './temp.js';

/** TCG on a loaded two-core machine; without load a boot takes some 20 s. */
const GUEST_TIMEOUT_MS = 300_000;
const ROOT_DISK_BYTES = 96 * 1024 * 1024;

const DISK_MODULES = ['virtio_pci', 'virtio_blk'];
const GUEST_MODULES = ['virtio_net', 'nbd'];
const GUEST_PROGRAMS = ['nbd-client', 'mkfs.ext4', 'e2fsck'];

/** A Linux kernel and the folder of its modules. */
interface Kernel {
  readonly image: string;
  readonly modules: string;
}

/** Debian's cloud kernel, the newest that is installed. */
async function findKernel(): Promise<Kernel> {
  const releases = (await readdir('/boot').catch(() => []))
    .filter((name) => /^vmlinuz-.*cloud/.test(name))
    .map((name) => name.slice('vmlinuz-'.length))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  const release = releases.at(-1);
  if (release === undefined) {
    throw new Error('no cloud kernel in /boot; scripts/install-peers installs it');
  }
  return { image: `/boot/vmlinuz-${release}`, modules: `/lib/modules/${release}` };
}

/**
 * Copies modules and what they depend on into a folder, as plain .ko files (a distribution may ship
 * them packed), beside a file `order` that names them in the order of loading.
 */
async function copyModules(kernel: Kernel, names: readonly string[], to: string): Promise<void> {
  const dependencies = new Map<string, string[]>();
  for (const line of (await readFile(join(kernel.modules, 'modules.dep'), 'utf8')).split('\n')) {
    const [file = '', needs = ''] = line.split(':');
    dependencies.set(moduleName(file), [file, ...needs.split(' ').filter((need) => need !== '')]);
  }
  const order: string[] = [];
  for (const name of names) {
    const files = dependencies.get(name);
    if (files === undefined) throw new Error(`${kernel.modules} has no module ${name}`);
    // modules.dep lists the deepest dependency last.
    for (const file of files.toReversed()) {
      if (order.includes(moduleName(file))) continue;
      order.push(moduleName(file));
      await copyModule(join(kernel.modules, file), join(to, `${moduleName(file)}.ko`));
    }
  }
  await writeFile(join(to, 'order'), `${order.join('\n')}\n`);
}

function moduleName(file: string): string {
  return basename(file).replace(/\.ko.*$/, '');
}

async function copyModule(file: string, target: string): Promise<void> {
  const unpack = /\.xz$/.test(file) ? 'xz' : /\.zst$/.test(file) ? 'zstd' : undefined;
  if (unpack === undefined) await copyFile(file, target);
  else await writeFile(target, (await runPeer(unpack, ['-dc', file])).stdoutBytes);
}

async function findProgram(name: string): Promise<string> {
  const found = await runPeer('sh', ['-c', `command -v ${name}`], { env: { PATH: PEER_PATH } });
  return realpath(found.stdout.trim());
}

/** Copies a program and the shared libraries that it needs, at the same paths. */
async function copyProgram(name: string, root: string): Promise<void> {
  const path = await findProgram(name);
  await copyFile(path, join(root, 'sbin', name));
  const { stdout } = await tryPeer('ldd', [path]);
  for (const [, library] of stdout.matchAll(/(?:=> )?(\/\S+) \(0x/g)) {
    if (library === undefined) continue;
    await mkdir(join(root, dirname(library)), { recursive: true });
    await cp(library, join(root, library), { dereference: true });
  }
}

/** A busybox root with its applet links' folder, module folder and mount points. */
async function makeTree(root: string): Promise<void> {
  for (const name of ['bin', 'sbin', 'modules', 'proc', 'sys', 'dev', 'mnt', 'new', 'tmp']) {
    await mkdir(join(root, name), { recursive: true });
  }
  await copyFile(await findProgram('busybox'), join(root, 'bin/busybox'));
}

async function writeScript(path: string, body: string): Promise<void> {
  await writeFile(path, `#!/bin/busybox sh\n${body}`, { mode: 0o755 });
}

/** First user-space program: loads the disk's modules, then moves over to the disk. */
const INITRAMFS_INIT = `
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
for name in $(cat /modules/order); do insmod /modules/$name.ko; done
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /new || { echo 'guest: no root disk'; poweroff -f; }
umount /sys /proc
mount --move /dev /new/dev
exec switch_root /new /sbin/init
`;

/** Runs from the root disk; whatever the test wants done is in /sbin/test-body. */
const ROOT_INIT = `
export PATH=/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo 6 > /proc/sys/kernel/printk
for name in $(cat /modules/order); do grep -q "^$name " /proc/modules || insmod /modules/$name.ko; done
ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
for word in $(cat /proc/cmdline); do case $word in df.*) export "$\{word#df.}";; esac; done
sh -eu /sbin/test-body; echo "guest: status $?"
cd /; sync; mount -o remount,ro / && echo 'guest: root disk clean'
poweroff -f
`;

export interface GuestFiles {
  readonly kernel: string;
  readonly initramfs: string;
  /** Raw image with the ext4 file system that the guest runs from. */
  readonly rootDisk: string;
}

/**
 * Builds what a guest boots from, in a temporary folder.
 * @param testBody shell commands that run in the guest, as root, with `set -eu`
 */
export async function makeGuest(scope: Scope, testBody: string): Promise<GuestFiles> {
  const dir = await scope.tempDir();
  const kernel = await findKernel();
  const first = join(dir, 'initramfs');
  await makeTree(first);
  await copyModules(kernel, DISK_MODULES, join(first, 'modules'));
  await writeScript(join(first, 'init'), INITRAMFS_INIT);
  const initramfs = join(dir, 'initramfs.cpio');
  const pack = 'find . | cpio --quiet -o -H newc -R 0:0 -F "$0"';
  await runPeer('sh', ['-c', pack, initramfs], { cwd: first });

  const root = join(dir, 'root');
  await makeTree(root);
  await copyModules(kernel, GUEST_MODULES, join(root, 'modules'));
  for (const name of GUEST_PROGRAMS) await copyProgram(name, root);
  await runPeer(join(root, 'bin/busybox'), ['--install', '-s', join(root, 'bin')]);
  await runPeer('sh', ['-c', 'for f in bin/*; do [ -L $f ] && ln -sf busybox $f; done; true'], {
    cwd: root,
  });
  await writeScript(join(root, 'sbin/init'), ROOT_INIT);
  await writeScript(join(root, 'sbin/test-body'), testBody);
  const rootDisk = join(dir, 'root.img');
  await runPeer('mkfs.ext4', ['-q', '-d', root, rootDisk, `${ROOT_DISK_BYTES / 1024}k`]);
  return { kernel: kernel.image, initramfs, rootDisk };
}

export interface GuestRun {
  /** Value of `-blockdev` for the root disk; its node-name has to be `root`. */
  readonly rootBlockdev: string;
  /** The same for a second disk, /dev/vdb; its node-name has to be `data`. */
  readonly dataBlockdev?: string;
  /** Become shell variables in the guest. */
  readonly variables: Readonly<Record<string, string | number>>;
}

/** Boots the guest without KVM and waits for it to power off. @returns its serial console */
export async function runGuest(files: GuestFiles, run: GuestRun): Promise<string> {
  const variables = Object.entries(run.variables).map(([name, value]) => `df.${name}=${value}`);
  const data =
    run.dataBlockdev === undefined
      ? []
      : ['-blockdev', run.dataBlockdev, '-device', 'virtio-blk-pci,drive=data'];
  const { stdout } = await runPeer(
    'qemu-system-x86_64',
    [
      ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '1', '-m', '256'],
      ...['-nodefaults', '-no-user-config', '-nographic', '-no-reboot', '-serial', 'stdio'],
      ...['-kernel', files.kernel, '-initrd', files.initramfs],
      ...['-append', `console=ttyS0 panic=-1 mitigations=off quiet ${variables.join(' ')}`],
      ...['-blockdev', run.rootBlockdev, '-device', 'virtio-blk-pci,drive=root'],
      ...data,
      ...['-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile='],
    ],
    { timeoutMs: GUEST_TIMEOUT_MS },
  );
  return stdout.replaceAll('\r', '');
}
