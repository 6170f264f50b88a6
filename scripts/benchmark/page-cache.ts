// SPDX-License-Identifier: MIT
/** Keeps an image in the page cache: some kernels take out pages that were not used for a while. */
import { once } from 'node:events';
import { start, stop } from './processes.js';

/** Node has no mlock; Debian's python, which nbdsh needs anyway, reaches it in the C library. */
const HOLD_SCRIPT = `
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
if at in (None, ctypes.c_void_p(-1).value) or libc.mlock(at, size) != 0:
    print(os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(1)
print('held', flush=True)
sys.stdin.read()
`;

/**
 * Reads a file into the page cache and keeps it there until `release` is called.
 * @returns why it may leave the cache, when the system did not allow that (RLIMIT_MEMLOCK)
 */
export async function holdInPageCache(
  path: string,
): Promise<{ readonly refused: string | undefined; release(): Promise<void> }> {
  const child = start('python3', ['-c', HOLD_SCRIPT, path], { stdin: 'pipe' });
  if (child.stdout === null) throw new Error('python3 has no standard output');
  const [said] = (await Promise.race([
    once(child.stdout, 'data'),
    once(child, 'exit').then(() => ['python3 ended']),
  ])) as [unknown];
  const answer = String(said).trim();
  return {
    refused: answer === 'held' ? undefined : answer,
    release: () => stop(child),
  };
}
