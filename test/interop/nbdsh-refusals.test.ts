// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import { MIB, readRange } from '../support/images.js';
import { nbdsh } from '../support/nbdsh.js';
import { serveImage } from '../support/served-image.js';
import { testScope } from '../support/temp.js';

const SIZE = 4 * MIB;

/** A client that sends what libnbd would normally refuse to send. */
const RELAXED = `
h.set_strict_mode(0)
h.connect_uri(uri)
`;

/** After a refusal the connection has to go on as if nothing had been. */
const STILL_SERVES = "show(h.pread(4, 0) == b'\\0\\0\\0\\0')";

const OUT_OF_RANGE: readonly [string, string, string][] = [
  ['a read past the end', `h.pread(1024, ${SIZE - 512})`, 'EINVAL'],
  ['a read far behind the end', 'h.pread(512, 1 << 60)', 'EINVAL'],
  ['a write past the end', `h.pwrite(b'y' * 1024, ${SIZE - 512})`, 'ENOSPC'],
  ['zeroes past the end', `h.zero(1024, ${SIZE - 512})`, 'ENOSPC'],
  ['a trim past the end', `h.trim(1024, ${SIZE - 512})`, 'EINVAL'],
  ['a cache past the end', `h.cache(1024, ${SIZE - 512})`, 'EINVAL'],
  ['a read with an unknown flag', 'h.pread(512, 0, 0x8000)', 'EINVAL'],
  ['a write with an unknown flag', "h.pwrite(b'y' * 512, 0, 0x8000)", 'EINVAL'],
  ['a flush with a flag of another command', 'h.flush(nbd.CMD_FLAG_NO_HOLE)', 'EINVAL'],
];

for (const [what, call, code] of OUT_OF_RANGE) {
  test(`${what} is refused with ${code}, and the connection goes on`, async () => {
    const disk = await serveImage(testScope(), { size: SIZE });
    const shown = await nbdsh(
      disk.uri,
      `${RELAXED}
show(failure(lambda: ${call}))
${STILL_SERVES}`,
    );
    expect(shown).toEqual([code, true]);
    expect((await readRange(disk.path, 0, SIZE)).equals(Buffer.alloc(SIZE))).toBe(true);
  });
}

test('block status without a negotiated context is refused', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const shown = await nbdsh(
    disk.uri,
    `${RELAXED}
show(failure(lambda: h.block_status(65536, 0, lambda *args: 0)))
${STILL_SERVES}`,
  );
  expect(shown).toEqual(['EINVAL', true]);
});

for (const call of ["h.pwrite(b'y' * 512, 0)", 'h.zero(512, 0)', 'h.trim(512, 0)']) {
  test(`a read-only export refuses ${call.slice(2, call.indexOf('('))} with EPERM`, async () => {
    const disk = await serveImage(testScope(), { size: SIZE, readOnly: true });
    const shown = await nbdsh(
      disk.uri,
      `${RELAXED}
show(h.is_read_only()); show(failure(lambda: ${call}))
${STILL_SERVES}`,
    );
    expect(shown).toEqual([true, 'EPERM', true]);
  });
}

test('requests of no length do nothing and harm nothing', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const shown = await nbdsh(
    disk.uri,
    `${RELAXED}
for call in (lambda: h.pread(0, 0), lambda: h.pwrite(b'', 0), lambda: h.zero(0, 0), lambda: h.trim(0, 0)):
    show(failure(call) in (None, 'EINVAL'))
${STILL_SERVES}`,
  );
  expect(shown).toEqual(Array(5).fill(true));
});

test('an export that does not exist is refused, and another may be asked for', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const [refusal, size] = await nbdsh(
    disk.uri,
    `
h.set_opt_mode(True)
h.connect_uri(uri)
h.set_export_name('no-such-export')
show(failure(h.opt_go))
h.set_export_name('disk')
h.opt_go()
show(h.get_size())
`,
  );
  expect([refusal, size]).toEqual(['ENOENT', SIZE]);
});

test('the option phase can be left with an abort', async () => {
  const disk = await serveImage(testScope(), { size: SIZE });
  const [names] = await nbdsh(
    disk.uri,
    `
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name) and 0)
h.opt_info()
h.opt_abort()
show(names)
`,
  );
  expect(names).toEqual(['disk']);
});
