// SPDX-License-Identifier: MIT
/** Bytes that are no QMP: as many errors as from QEMU, in the same words. */
import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { daemonCommand } from '../support/daemon.js';

/** A client that has lost track sends 0xFF; a line end makes sure that a keyword ends, too. */
const RESYNC = Buffer.from([0x0a, 0xff, 0x0a]);
const END = Buffer.from('{"execute":"qmp_capabilities"}{"execute":"quit"}\n');

const GARBAGE: readonly string[] = [
  ...['}', ']', '{]', '[}', '}}}', ',', ':', '[1,2', '{"execute"'],
  ...['#', '##', '# #', '#\n#\n', '+1', '.5', '01', '1.x', '-a', '/* c */', '<xml>', '\\'],
  ...['hello', 'nul', 'truefalse', 'GET / HTTP/1.0\r\n\r\n'],
  ...['"abc\n', "'abc\n", '{"execute": "abc\n"}', '{"execute":"qu\x07x"}', '"\x01"', '"\\q"'],
  ...['\x01', '{"a":\x01}', '\x7f', '\xfe', '\x80\x81', '\xc3\x28', '"\xc3\x28"'],
  ...['{"execute": nope}', '{"execute": #}', '{"a":{"b":#}}', '{"a":#,"b":1}', '{"a":1,"a":2}'],
  ...['{"execute" "x"}', '{"execute":"x" "y"}', '{"execute":"query-name",}', '"a" "b"'],
  ...['{"execute":"query-commands"}}', '#{"execute":"query-commands"}', '\xef\xbb\xbf{"a":1}'],
];

/** What the daemon answers to each piece and the resynchronization after it. */
function answers(program: string, args: readonly string[]): string[] {
  const pieces = GARBAGE.map((text) => Buffer.concat([Buffer.from(text, 'latin1'), RESYNC]));
  const { stdout, stderr } = spawnSync(
    program,
    [...args, '--chardev', 'stdio,id=c', '--monitor', 'c'],
    { input: Buffer.concat([...pieces, END]), timeout: 60_000, encoding: 'utf8' },
  );
  const lines = stdout.split('\n').filter((line) => line !== '');
  expect(lines.length, stderr).toBeGreaterThan(GARBAGE.length);
  return lines.slice(1).map((line) => {
    const { error } = JSON.parse(line) as { error?: { class: string; desc: string } };
    return error === undefined ? 'done' : `${error.class}: ${error.desc}`;
  });
}

it('brings the same errors as with qemu-storage-daemon', () => {
  const { program, args } = daemonCommand();
  expect(answers(program, args)).toEqual(answers('qemu-storage-daemon', []));
});
