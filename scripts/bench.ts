// SPDX-License-Identifier: MIT
/** Entry of scripts/bench: reads the command line and runs the benchmark that it names. */
import { parseArgs } from 'node:util';
import { benchServe } from './benchmark/serve.js';

const USAGE = `usage: scripts/bench serve [options]
  --rounds N       rounds over all cells and servers (3)
  --seconds S      length of one cell (2)
  --quick          one round, one second a cell
  --only TEXT      only cells whose name contains TEXT, such as "tcp 4k-randread" or "cold-cache"
  --servers LIST   only these, parted by commas: diskferryd, qemu-storage-daemon, qemu-nbd, nbdkit
  --dir DIR        where images and sockets go (the system's temporary folder)
  --out FILE       write the report there instead of to standard output
`;
const ROUNDS_DEFAULT = 3;
const SECONDS_DEFAULT = 2;

function positive(text: string, name: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} has to be a number above 0, not '${text}'`);
  return value;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      servers: { type: 'string', default: '' },
      dir: { type: 'string' },
      out: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help || positionals.length !== 1 || positionals[0] !== 'serve') {
    process.stderr.write(USAGE);
    process.exitCode = values.help ? 0 : 1;
    return;
  }
  const defaults = values.quick ? [1, 1] : [ROUNDS_DEFAULT, SECONDS_DEFAULT];
  await benchServe({
    rounds: Math.ceil(positive(values.rounds ?? `${defaults[0]}`, 'rounds')),
    secondsPerCell: positive(values.seconds ?? `${defaults[1]}`, 'seconds'),
    only: values.only,
    servers: values.servers.split(',').filter((name) => name !== ''),
    out: values.out,
    parentDir: values.dir,
  });
}

try {
  await main();
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
