// SPDX-License-Identifier: MIT
/** Encrypted qcow2 images in a dialogue with our daemon and with qemu-storage-daemon. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { sayToBoth } from '../support/dialogue.js';
import { FORMATS, SECRET, weCreate } from '../support/encrypted-qcow2.js';
import type { Scope } from '../support/temp.js';

const reply = async (answer: Promise<unknown>): Promise<unknown> => {
  try {
    return await answer;
  } catch (error) {
    return String(error);
  }
};

it.each(FORMATS)('%s: opened, described, reopened and refused alike', async (format) => {
  const make = async (scope: Scope) => {
    const dir = await scope.tempDir();
    await weCreate(join(dir, 'image'), format);
    await writeFile(join(dir, 'plain'), '');
    const wrong = ['--object', 'secret,id=wrong,data=wrong'];
    return { dir, args: [...SECRET, ...wrong] };
  };
  const said = await sayToBoth(make, async ({ qmp, dir }) => {
    const answers: unknown[] = [];
    const say = async (command: string, args: object = {}): Promise<void> => {
      const answer = await reply(qmp.execute(command, args));
      const text = JSON.stringify(answer).replaceAll(dir, 'DIR');
      answers.push(JSON.parse(text.replaceAll(/"uuid":"[^"]*"/g, '"uuid":""')));
    };
    const file = { driver: 'file', filename: join(dir, 'image') };
    const node = { driver: 'qcow2', 'node-name': 'n', file };
    await say('blockdev-add', node);
    await say('blockdev-add', { ...node, encrypt: { format } });
    await say('blockdev-add', { ...node, encrypt: { 'key-secret': 's' } });
    await say('blockdev-add', { ...node, encrypt: { format, 'key-secret': 'none' } });
    const other = format === 'aes' ? 'luks' : 'aes';
    await say('blockdev-add', { ...node, encrypt: { format: other, 'key-secret': 's' } });
    if (format === 'luks') {
      await say('blockdev-add', { ...node, encrypt: { format, 'key-secret': 'wrong' } });
    }
    const named = { ...node, file: { ...file, 'node-name': 'f' } };
    const encrypt = { format, 'key-secret': 's' };
    await say('blockdev-add', { ...named, encrypt });
    await say('object-del', { id: 's' });
    const again = { driver: 'qcow2', 'node-name': 'n', file: 'f' };
    await say('blockdev-reopen', {
      options: [{ ...again, encrypt: { ...encrypt, format: other } }],
    });
    await say('blockdev-reopen', { options: [{ ...again, encrypt, 'read-only': true }] });
    const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
    const described = (nodes as { 'node-name': string; file: string; image: object }[]).find(
      (each) => each['node-name'] === 'n',
    );
    const { image, ...rest } = described as unknown as { image: Record<string, unknown> };
    const { filename: _name, 'dirty-flag': _dirty, 'actual-size': _size, ...shown } = image;
    const flags = rest as unknown as { encrypted: boolean; drv: string; ro: boolean };
    const specific = shown['format-specific'] as { data: { encrypt: Record<string, unknown> } };
    const { encrypt: told, ...data } = specific.data;
    const luks = { ...told, uuid: '', slots: undefined, 'master-key-iters': 0 };
    answers.push({ encrypted: flags.encrypted, drv: flags.drv, ro: flags.ro });
    answers.push({ ...shown, 'format-specific': { ...data, luks } });
    await say('blockdev-del', { 'node-name': 'n' });
    return answers;
  });
  expect(JSON.stringify(said)).toContain('"encrypted":true');
});
