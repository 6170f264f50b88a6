// SPDX-License-Identifier: MIT
/** `diskferry img`: the commands, one file each. */
import { BlockError } from '../../base/errors.js';
import { bitmap } from './bitmap.js';
import { check } from './check.js';
import { commit } from './commit.js';
import { compare } from './compare.js';
import { convert } from './convert.js';
import { create } from './create.js';
import { dd } from './dd.js';
import { commandHelp } from './help.js';
import { info } from './info.js';
import { map } from './map.js';
import { measure } from './measure.js';
import { rebase } from './rebase.js';
import { resize } from './resize.js';
import { snapshot } from './snapshot.js';

export const IMG_HELP = `Usage: diskferry img COMMAND [OPTION...]: options and output as qemu-img's

  info [-f FMT] [--output human|json] [--backing-chain] [-U] [--image-opts] FILE
  map [-f FMT] [--output human|json] [-s OFFSET] [-l LENGTH] [-U] [--image-opts] FILE
  check [-r leaks|all] [-f FMT] [--output human|json] [-T CACHE] [-q] [-U] [--image-opts] FILE
  create [-f FMT] [-o OPTIONS] [-b BACKING -F FMT] [-u] [-q] FILE [SIZE]
  convert [-f FMT] [-O FMT] [-o OPTIONS] [-B BACKING -F FMT] [-l SNAPSHOT] [-c|-C] [-n]
          [--target-is-zero] [-S SIZE] [-m COUNT] [-W] [-r RATE] [-t CACHE] [-T CACHE]
          [--salvage] [--bitmaps [--skip-broken-bitmaps]] [-p] [-q] [-U] [--image-opts]
          [--target-image-opts] FILE... TARGET
  dd [-f FMT] [-O FMT] [-U] [--image-opts] [bs=SIZE] [count=N] [skip=N] if=FILE of=TARGET
  compare [-f FMT] [-F FMT] [-T CACHE] [-s] [-p] [-q] [-U] [--image-opts] FILE1 FILE2
  measure [-O FMT] [-o OPTIONS] [--output human|json] [-U]
          (--size N | [-f FMT] [-l SNAPSHOT] [--image-opts] FILE)
  bitmap (--add [-g SIZE] | --remove | --clear | --enable | --disable | --merge SOURCE)...
         [-b SOURCEFILE [-F FMT]] [-f FMT] [--image-opts] FILE BITMAP
  rebase (-b BACKING -F FMT | -b '' | -u) [-f FMT] [-t CACHE] [-T CACHE] [-p] [-q] [-U]
         [--image-opts] FILE
  commit [-b BASE] [-d] [-f FMT] [-t CACHE] [-r RATE] [-p] [-q] [--image-opts] FILE
  resize [-f FMT] [--preallocation MODE] [--shrink] [-q] [--image-opts] FILE [+|-]SIZE
  snapshot [-l | -c NAME | -a NAME | -d NAME] [-f FMT] [-q] [-U] [--image-opts] FILE

FILE is a path, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, ws://HOST:PORT/EXPORT or
json:{...}; a format that is not given is found out by the first bytes. Encrypted disks need a
secret:
  --object secret,id=ID,file=PATH --image-opts driver=luks,key-secret=ID,file.filename=PATH
`;

const COMMANDS: Readonly<Record<string, (args: string[]) => Promise<number>>> = {
  bitmap,
  check,
  commit,
  compare,
  convert,
  create,
  dd,
  info,
  map,
  measure,
  rebase,
  resize,
  snapshot,
};

/** @returns exit status, as qemu-img's. @throws what went wrong; `exitStatus` on it when not 1 */
export async function img(args: readonly string[]): Promise<number> {
  const [command = '', ...rest] = args;
  if (['', '-h', '--help', 'help'].includes(command)) {
    process.stdout.write(commandHelp(rest[0] ?? '', IMG_HELP) ?? IMG_HELP);
    return command === '' ? 1 : 0;
  }
  if (rest.includes('--help') || rest.includes('-h')) {
    const text = commandHelp(command, IMG_HELP);
    if (text !== undefined) {
      process.stdout.write(text);
      return 0;
    }
  }
  const run = Object.hasOwn(COMMANDS, command) ? COMMANDS[command] : undefined;
  if (run === undefined) {
    throw new BlockError('DF_INVALID', `img has no command '${command}'; see diskferry img --help`);
  }
  return run(rest);
}
