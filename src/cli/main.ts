// SPDX-License-Identifier: MIT
/** The diskferry command: subcommands, each in a file of its own. */
import { parseArgs } from 'node:util';
import { VERSION } from '../daemon/version.js';
import { migrate } from './migrate.js';
import { qmp } from './qmp.js';

const HELP = `Usage: diskferry COMMAND [OPTION...]

  migrate   move a disk that is in use from one daemon to another
  qmp       run one QMP command and print what it returns

Options of migrate:
  --from MONITOR      monitor of the daemon that has the disk: a socket's path, or HOST:PORT
  --node NAME         the disk there
  --to URI            where it goes: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
  --speed BYTES       bytes a second at most
  --copy-only         leave the users on the source; the target is a copy as of the end

Options of qmp:
  diskferry qmp MONITOR COMMAND [KEY=VALUE...]
  A value that is JSON (a number, true, {...}) is taken as such, anything else is a string.

Examples:
  diskferry qmp /run/diskferryd.sock query-block-exports
  diskferry migrate --from /run/a.sock --node disk0 --to nbd://host-b/disk0
`;

async function main(): Promise<number> {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      from: { type: 'string' },
      node: { type: 'string' },
      to: { type: 'string' },
      speed: { type: 'string' },
      'copy-only': { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
      version: { type: 'boolean', short: 'V', default: false },
    },
  });
  const [command, ...rest] = positionals;
  if (values.help || command === 'help') {
    process.stdout.write(HELP);
    return 0;
  }
  if (values.version) {
    process.stdout.write(`diskferry version ${VERSION}\n`);
    return 0;
  }
  if (command === 'qmp') return qmp(rest);
  if (command === 'migrate') {
    return migrate({ ...values, copyOnly: values['copy-only'] });
  }
  throw new Error(
    command === undefined
      ? "no command: 'diskferry --help' lists them"
      : `unknown command '${command}': 'diskferry --help' lists them`,
  );
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : undefined;
    const text = error instanceof Error ? error.message : String(error);
    process.stderr.write(`diskferry: ${text}${cause ? `: ${cause.message}` : ''}\n`);
    process.exitCode = 1;
  },
);
