// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { commandHelp } from '../../../../src/cli/img/help.js';
import { IMG_HELP } from '../../../../src/cli/img/main.js';

const commands = [...IMG_HELP.matchAll(/^ {2}([a-z]+) [[(-]/gm)].map(([, name]) => name ?? '');

it.each(commands)('img %s has a help of its own that explains each of its options', (command) => {
  const [usage = '', options = ''] = commandHelp(command, IMG_HELP)?.split('\n\n') ?? [];
  expect(usage).toMatch(new RegExp(`^Usage: diskferry img ${command} `));
  for (const other of commands) {
    if (other !== command)
      expect(usage).not.toMatch(new RegExp(`^(Usage: diskferry img |)${other} `, 'm'));
  }
  for (const [option] of usage.matchAll(/(?<![\w-])--?[a-zA-Z][\w-]*/g)) {
    expect(options).toMatch(new RegExp(`^ {2}${option} +\\S`, 'm'));
  }
});

it('knows no help of what is no command', () => {
  expect(commandHelp('FILE', IMG_HELP)).toBeUndefined();
  expect(commandHelp('', IMG_HELP)).toBeUndefined();
  expect(commands.length).toBeGreaterThan(8);
});
