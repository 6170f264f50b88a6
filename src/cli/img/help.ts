// SPDX-License-Identifier: MIT
/** `diskferry img COMMAND --help`: the command's lines of the usage, and what its options mean. */

/** Options that mean the same in every command that has them. */
const COMMON: Readonly<Record<string, string>> = {
  '-f': 'FMT: format of the image; otherwise it is found out by the first bytes',
  '-O': 'FMT: format of the target (default: raw)',
  '-o': 'OPTIONS: name=value,... of the new image, such as cluster_size=SIZE; -o help lists them',
  '-U': 'open the image although another process writes to it; what is read may be torn',
  '-q': 'print nothing but errors',
  '-p': 'show how far it is, on standard error',
  '-t': 'CACHE: none (past the page cache), writeback, writethrough, directsync or unsafe (no flush)',
  '-T': 'CACHE: how the source is read (default: writeback)',
  '--output': 'human (default) or json',
  '--object': 'secret,id=ID,file=PATH: a passphrase that other options refer to',
  '--image-opts': 'FILE is options of a node, driver=qcow2,file.filename=PATH, as with --blockdev',
};

/** By command; these go before the common ones. */
const OWN: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  bitmap: {
    '--add': 'make the bitmap; it records from then on',
    '--remove': 'remove it',
    '--clear': 'forget what it has recorded',
    '--enable': 'record from now on',
    '--disable': 'record no more',
    '--merge': 'SOURCE: add what another bitmap has recorded',
    '-g': 'SIZE: bytes that one bit of a new bitmap stands for, a power of two from 512',
    '-b': 'SOURCEFILE: image that has the bitmaps to merge',
    '-F': 'FMT: its format',
  },
  check: {
    '-r': 'repair: leaks mends clusters that nobody uses, all also what is damaged',
  },
  commit: {
    '-b': 'BASE: image of the chain that gets the data (default: the one right below)',
    '-d': 'do not empty FILE afterwards',
    '-r': 'RATE: bytes a second at most',
  },
  compare: {
    '-F': 'FMT: format of the second image',
    '-s': 'strict: sizes, and what is allocated, have to be the same as well',
  },
  convert: {
    '-B': 'BACKING: image that the new one lies on, with the same data below FILE: only the rest is copied',
    '-F': 'FMT: format of that',
    '-c': 'compress the data (qcow2)',
    '-C': 'the system may copy data from file to file, zeroes in it as well',
    '-l': 'SNAPSHOT: an internal snapshot of FILE, by ID or name',
    '--salvage': 'what can not be read becomes zeroes, and a warning',
    '-n': 'do not make the target: it is there, and large enough',
    '--target-is-zero': 'the target reads as zeroes (with -n): zeroes are not written',
    '-S': 'SIZE: so many zero bytes at least become a hole (default: 4k); 0: everything is written',
    '-m': 'COUNT: requests at a time, 1 to 16',
    '-W': 'write in any order, which is always so',
    '-r': 'RATE: bytes a second at most',
    '--bitmaps': 'copy persistent bitmaps as well',
    '--skip-broken-bitmaps': 'but for those that are inconsistent',
    '--target-image-opts': 'TARGET is options of a node; implies -n',
  },
  create: {
    '-b': 'BACKING: image that the new one lies on',
    '-F': 'FMT: format of that',
    '-u': 'do not open the backing image; SIZE has to be given',
  },
  info: { '--backing-chain': 'the images below as well' },
  map: {
    '-s': 'OFFSET: where to begin, bytes',
    '-l': 'LENGTH: how far to go, bytes',
  },
  measure: {
    '--size': 'N: bytes of a new image, in place of FILE',
    '-l': 'SNAPSHOT: an internal snapshot of FILE',
  },
  rebase: {
    '-b': "BACKING: image that FILE lies on from now on; '' for none",
    '-F': 'FMT: format of that',
    '-u': 'only note the new name: for an image that has the same data, unchecked',
  },
  resize: {
    '--preallocation': 'MODE: what becomes of bytes gained: off (default), metadata, falloc, full',
    '--shrink': 'allow the disk to become smaller: what lies behind is lost',
  },
  snapshot: {
    '-l': 'list the snapshots (default)',
    '-c': 'NAME: make one of the disk as it is',
    '-a': 'NAME: make the disk what it was then',
    '-d': 'NAME: remove one',
  },
};

const DEFAULT_OPTION_WIDTH = 22;

/**
 * @param usage that of all commands, where each begins a line of its own
 * @returns undefined for a command that is not in it
 */
export function commandHelp(command: string, usage: string): string | undefined {
  const lines = usage.split('\n');
  const start = lines.findIndex((line) => line.startsWith(`  ${command} `));
  if (start < 0 || !/^[a-z]+$/.test(command)) return undefined;
  const length = lines.slice(start + 1).findIndex((line) => !line.startsWith('   '));
  const own = lines.slice(start, start + 1 + Math.max(length, 0)).map((line) => line.slice(2));
  const given = new Set(own.join(' ').match(/(?<![\w-])--?[a-zA-Z][\w-]*/g));
  given.add('--object');
  const docs = { ...COMMON, ...OWN[command] };
  const rows = [...given].flatMap((option) => {
    const doc = docs[option];
    return doc === undefined ? [] : [`  ${option.padEnd(DEFAULT_OPTION_WIDTH)} ${doc}\n`];
  });
  const rest = lines.slice(lines.indexOf('', start) + 1).join('\n');
  return `Usage: diskferry img ${own.join('\n').trimEnd()}\n\n${rows.join('')}\n${rest}`;
}
