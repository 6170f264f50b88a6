// SPDX-License-Identifier: MIT
/** The diskferry command: subcommands, each in a file of its own. */
import { parseArgs } from 'node:util';
import { errorLines } from '../base/error-text.js';
import { toError } from '../base/errors.js';
import { VERSION } from '../daemon/version.js';
import { img } from './img/main.js';
import { cancel, jobs } from './jobs.js';
import { migrate } from './migrate.js';
import { qmp } from './qmp.js';

const MIGRATE_HELP = `Usage: diskferry migrate --from MONITOR --node NAME --to URI [OPTION...]
Moves a disk that is in use to another NBD server, and its users with it, while they work.

  --from MONITOR      monitor of the daemon that has the disk: a socket's path, or HOST:PORT
  --node NAME         the disk there
  --to URI            where it goes, a writable export of the same size: nbd://HOST[:PORT]/EXPORT,
                      nbd+unix:///EXPORT?socket=PATH, ws://HOST[:PORT]/EXPORT, or as QEMU writes it,
                      nbd:HOST:PORT[:exportname=EXPORT], nbd:unix:PATH[:exportname=EXPORT]
  --speed BYTES       bytes a second at most, with k, M, G or T for powers of 1024; 0: no limit
  --copy-mode MODE    when a write reaches the target: background, write-blocking or auto (default),
                      which slows writers down when they write as fast as the disk is copied
  --copy-only         leave the users on the source; the target is a copy as of the end
  --job JOB           go on with the job of an earlier migrate that was killed; with --from alone,
                      and not for one with --bitmaps
  --bitmaps           the node's dirty bitmaps go along: incremental backups go on at the target
  --to-monitor MONITOR
                      with --bitmaps: monitor of the daemon that has the target, diskferryd or
                      qemu-storage-daemon; it, its NBD server and the source's are reached from here
  --to-node NAME      the node there that gets the bitmaps, when not the one that is exported
  --from-nbd URI      the source's NBD server, when its monitor does not tell (QEMU's does not)
  -h, --help          print this

SIGINT, SIGTERM or SIGHUP calls the migration off: the disk stays where it is. Another one, more
than a second later, ends the command at once, and not the job: the daemon goes on copying, as it
does when the command is killed, and leaves the disk's users where they are until somebody says
more. 'diskferry jobs' shows such a job; --job goes on with it, 'diskferry cancel' calls it off.

Example:
  diskferry migrate --from /run/a.qmp --node disk0 --to nbd://host-b/disk0
`;

const QMP_HELP = `Usage: diskferry qmp MONITOR COMMAND [KEY=VALUE...]
Runs one QMP command and prints what it returns, as JSON.

  MONITOR             a socket's path, or HOST:PORT
  COMMAND             query-commands lists all; docs/qmp-reference.md tells what they do
  KEY=VALUE           an argument: a VALUE that is JSON (a number, true, {...}, "text") is taken as
                      such, anything else is text
  -h, --help          print this

Examples:
  diskferry qmp /run/diskferryd.qmp query-block-exports
  diskferry qmp localhost:4444 block_resize node-name=disk0 size=10737418240
`;

const JOBS_HELP = `Usage: diskferry jobs MONITOR
Lists a daemon's jobs: what each is, its state, how far it is, and what it failed with.

  MONITOR             a socket's path, or HOST:PORT
  -h, --help          print this
`;

const CANCEL_HELP = `Usage: diskferry cancel MONITOR JOB
Calls a job off by force, and waits for its end: users of its source stay there. Of one that has
ended only the report is left, which goes. The target node of a migrate goes with its job.

  MONITOR             a socket's path, or HOST:PORT
  JOB                 its name; 'diskferry jobs' tells it
  -h, --help          print this
`;

const HELP_OF: Readonly<Record<string, string>> = {
  migrate: MIGRATE_HELP,
  qmp: QMP_HELP,
  jobs: JOBS_HELP,
  cancel: CANCEL_HELP,
};

const HELP = `Usage: diskferry COMMAND [OPTION...]

  migrate   move a disk that is in use from one daemon to another NBD server
  jobs      list the jobs of a daemon
  cancel    call a job off
  img       look into disk images and change them, with the commands of qemu-img
  qmp       run one QMP command and print what it returns

  -h, --help     print this; after a command: how that is used
  -V, --version  print the version

Examples:
  diskferry migrate --from /run/a.qmp --node disk0 --to nbd://host-b/disk0
  diskferry img convert -O qcow2 disk.img disk.qcow2
  diskferry qmp /run/diskferryd.qmp query-block-exports
`;

const HINT = "'diskferry --help' tells how it is used";

async function main(args: readonly string[]): Promise<number> {
  const [command, ...rest] = args;
  if (command === undefined) throw new Error(`no command given; ${HINT}`);
  if (['-h', '--help', 'help'].includes(command)) {
    const [topic, ...more] = rest;
    if (topic !== undefined && topic !== 'help') return main([topic, '--help', ...more]);
    process.stdout.write(HELP);
    return 0;
  }
  if (rest.includes('--help') || rest.includes('-h')) {
    const text = Object.hasOwn(HELP_OF, command) ? HELP_OF[command] : undefined;
    if (text !== undefined) {
      process.stdout.write(text);
      return 0;
    }
  }
  if (['-V', '--version'].includes(command)) {
    process.stdout.write(`diskferry version ${VERSION}\n`);
    return 0;
  }
  if (command === 'qmp') return qmp(rest);
  if (command === 'jobs') return jobs(rest);
  if (command === 'cancel') return cancel(rest);
  if (command === 'img') return img(rest);
  if (command === 'migrate') return migrate(migrateOptions(rest));
  const what = command.startsWith('-') ? 'option' : 'command';
  throw new Error(`unknown ${what} '${command}'; ${HINT}`);
}

function migrateOptions(args: string[]) {
  try {
    const { values } = parseArgs({
      args,
      options: {
        from: { type: 'string' },
        node: { type: 'string' },
        to: { type: 'string' },
        speed: { type: 'string' },
        'copy-mode': { type: 'string' },
        job: { type: 'string' },
        'copy-only': { type: 'boolean', default: false },
        bitmaps: { type: 'boolean', default: false },
        'to-monitor': { type: 'string' },
        'to-node': { type: 'string' },
        'from-nbd': { type: 'string' },
      },
    });
    return {
      ...values,
      copyMode: values['copy-mode'],
      copyOnly: values['copy-only'],
      toMonitor: values['to-monitor'],
      toNode: values['to-node'],
      fromNbd: values['from-nbd'],
    };
  } catch (error) {
    // Node's text goes on with advice on positional arguments, which there are none of here.
    const text = error instanceof Error ? error.message.split('. ')[0] : String(error);
    throw new Error(`migrate: ${text}; ${HINT}`);
  }
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`diskferry: ${errorLines(toError(error))}\n`);
    const own = error instanceof Error && 'exitStatus' in error ? error.exitStatus : undefined;
    process.exitCode = typeof own === 'number' ? own : 1;
  },
);
