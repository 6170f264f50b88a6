// SPDX-License-Identifier: MIT
/** Entry of scripts/bench: reads the command line and runs the benchmark that it names. */
import { parseArgs } from 'node:util';
import { MIB } from './benchmark/cells.js';
import { benchImages } from './benchmark/images/images.js';
import { benchJobs } from './benchmark/jobs/jobs.js';
import { benchServe } from './benchmark/serve.js';

const USAGE = `usage: scripts/bench serve [options]
       scripts/bench jobs [options]
       scripts/bench images [options]

serve: the load of clients on servers
  --rounds N       rounds over all cells and servers (3)
  --seconds S      length of one cell (2)
  --quick          one round, one second a cell
  --only TEXT      only cells whose name contains TEXT, such as "tcp 4k-randread" or "cold-cache"
  --servers LIST   only these, parted by commas: diskferryd, qemu-storage-daemon, qemu-nbd, nbdkit
  --dir DIR        where images and sockets go (the system's temporary folder)
  --out FILE       write the report there instead of to standard output
  --readme FILE    also put the summary into FILE, between its bench:serve markers

jobs: mirror and backup by diskferryd and by qemu-storage-daemon, each copy verified
  --rounds N       rounds over all cells and both daemons (3)
  --size N         size of the disk that is copied, MiB (512)
  --quick          one round of 32 MiB
  --only TEXT      only cells whose name contains TEXT, such as "backup" or "20 ms"
  --dir, --out     as above
  --readme FILE    also put the summary into FILE, between its bench:jobs markers

images: qcow2 images under load, conversions, and opening a huge image
  --rounds N       rounds over all cells and programs (3)
  --seconds S      length of one cell (1)
  --size N         size of the images, MiB (256)
  --quick          one round of 32 MiB, a quarter of a second a cell
  --only TEXT      only cells whose name contains TEXT, such as "full 4k", "chain3" or "convert"
  --dir, --out     as above
  --readme FILE    also put the summary into FILE, between its bench:images markers
`;
const ROUNDS_DEFAULT = 3;
const SECONDS_DEFAULT = 2;
const JOBS_MIB_DEFAULT = 512;
const JOBS_MIB_QUICK = 32;
const IMAGES_MIB_DEFAULT = 256;
const IMAGES_MIB_QUICK = 32;
const IMAGES_SECONDS_DEFAULT = 1;
const IMAGES_SECONDS_QUICK = 0.25;

function positive(text: string, name: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} has to be a number above 0, not '${text}'`);
  return value;
}

function readCommandLine() {
  return parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      size: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      servers: { type: 'string' },
      dir: { type: 'string' },
      out: { type: 'string' },
      readme: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
}
type Values = ReturnType<typeof readCommandLine>['values'];

function common(values: Values) {
  const rounds = values.quick ? 1 : ROUNDS_DEFAULT;
  return {
    rounds: Math.ceil(positive(values.rounds ?? `${rounds}`, 'rounds')),
    only: values.only,
    out: values.out,
    readme: values.readme,
    parentDir: values.dir,
  };
}

/** @throws Error for an option of the other benchmark */
function refuse(values: Values, names: readonly (keyof Values)[], benchmark: string): void {
  const [given] = names.filter((name) => values[name] !== undefined);
  if (given !== undefined) throw new Error(`scripts/bench ${benchmark} has no option --${given}`);
}

function serve(values: Values): Promise<void> {
  refuse(values, ['size'], 'serve');
  const seconds = values.quick ? 1 : SECONDS_DEFAULT;
  return benchServe({
    ...common(values),
    secondsPerCell: positive(values.seconds ?? `${seconds}`, 'seconds'),
    servers: (values.servers ?? '').split(',').filter((name) => name !== ''),
  });
}

/** @param mebibytes when the command line says nothing */
function sized(values: Values, mebibytes: number) {
  const size = Math.ceil(positive(values.size ?? `${mebibytes}`, 'size')) * MIB;
  return { ...common(values), size };
}

function jobs(values: Values): Promise<void> {
  refuse(values, ['seconds', 'servers'], 'jobs');
  const mebibytes = values.quick ? JOBS_MIB_QUICK : JOBS_MIB_DEFAULT;
  return benchJobs({ ...sized(values, mebibytes), quick: values.quick });
}

function images(values: Values): Promise<void> {
  refuse(values, ['servers'], 'images');
  const seconds = values.quick ? IMAGES_SECONDS_QUICK : IMAGES_SECONDS_DEFAULT;
  return benchImages({
    ...sized(values, values.quick ? IMAGES_MIB_QUICK : IMAGES_MIB_DEFAULT),
    secondsPerCell: positive(values.seconds ?? `${seconds}`, 'seconds'),
  });
}

const BENCHMARKS: Readonly<Record<string, (values: Values) => Promise<void>>> = {
  serve,
  jobs,
  images,
};

async function main(): Promise<void> {
  const { values, positionals } = readCommandLine();
  const [name = '', ...more] = positionals;
  const benchmark = Object.hasOwn(BENCHMARKS, name) ? BENCHMARKS[name] : undefined;
  if (benchmark !== undefined && !values.help && more.length === 0) return benchmark(values);
  process.stderr.write(USAGE);
  process.exitCode = values.help ? 0 : 1;
}

try {
  await main();
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
