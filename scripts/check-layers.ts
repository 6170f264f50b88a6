// SPDX-License-Identifier: MIT
/** Who may import whom, as a table; any other import between folders is an error. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { sourceFiles } from './source-files.js';

interface Layer {
  /** Folder (or file) the row is for; the longest that matches a file counts. */
  readonly folder: string;
  /** Folders and files that it may import from, besides itself. */
  readonly may: readonly string[];
  /** Packages and `node:` modules that only some layers may use, of those in RESTRICTED. */
  readonly packages?: readonly string[];
}

/** Packages that are confined to the layers that name them. */
const RESTRICTED = ['koffi', 'ws', 'pino', 'pino-pretty'];

const BLOCK_FILES = ['src/base', 'src/block'];
const LAYERS: readonly Layer[] = [
  { folder: 'protocol', may: [] },
  { folder: 'protocol/nbd', may: ['protocol'] },
  { folder: 'protocol/luks', may: [] },
  { folder: 'protocol/qapi', may: ['protocol'] },
  { folder: 'protocol/qcow2', may: ['protocol/layout.ts'] },
  { folder: 'src/base', may: [], packages: ['pino', 'pino-pretty'] },
  { folder: 'src/base/web-sockets.ts', may: [], packages: ['ws'] },
  { folder: 'src/sys', may: ['src/base'], packages: ['koffi'] },
  {
    folder: 'src/nbd/client',
    may: ['protocol/layout.ts', 'protocol/bit-fields.ts', 'protocol/nbd', 'src/base'],
    packages: ['ws'],
  },
  { folder: 'src/block', may: ['src/base', 'src/block/bitmap', 'src/block/throttle'] },
  { folder: 'src/block/bitmap', may: BLOCK_FILES },
  { folder: 'src/block/throttle', may: BLOCK_FILES },
  { folder: 'src/block/crypto', may: [...BLOCK_FILES, 'protocol/luks'] },
  { folder: 'src/block/driver', may: [...BLOCK_FILES, 'src/sys'] },
  { folder: 'src/block/driver/all.ts', may: ['src/base', 'src/block', 'src/sys'] },
  {
    folder: 'src/block/driver/nbd.ts',
    may: [...BLOCK_FILES, 'src/nbd/client', 'protocol/nbd', 'src/sys'],
  },
  { folder: 'src/block/driver/qcow2', may: [...BLOCK_FILES, 'src/sys', 'protocol/qcow2'] },
  { folder: 'src/block/filter', may: [...BLOCK_FILES, 'src/sys'] },
  { folder: 'src/job', may: ['src/base', 'src/block'] },
  {
    folder: 'src/nbd/server',
    may: ['protocol/layout.ts', 'protocol/bit-fields.ts', 'protocol/nbd', 'src/base', 'src/block'],
    packages: ['ws'],
  },
  { folder: 'src/qmp', may: ['protocol/qapi', 'src/base', 'src/block', 'src/job', 'src/nbd'] },
  { folder: 'src/qmp/transport', may: ['protocol/qapi', 'src/base', 'src/qmp'], packages: ['ws'] },
  {
    folder: 'src/qmp/commands',
    may: ['protocol/qapi', 'src/base', 'src/block', 'src/job', 'src/nbd', 'src/qmp'],
  },
  { folder: 'src/daemon', may: ['src', 'protocol'], packages: ['pino'] },
  { folder: 'src/cli', may: ['src', 'protocol'] },
  { folder: 'src/index.ts', may: ['src', 'protocol'] },
  { folder: 'src/nbd.ts', may: ['src/nbd', 'src/base', 'src/block', 'protocol/nbd'] },
  { folder: 'src/qmp.ts', may: ['src/qmp', 'src/base', 'protocol/qapi'] },
];

/** Files of `src/nbd`, `src/qmp` and above may name the drivers' table, nobody else's insides. */
const DRIVER_FILES = /^src\/block\/(driver|filter)\//;
const MAY_NAME_DRIVERS = /^src\/(block\/(driver|filter)|job|daemon|cli|index\.ts)/;

const within = (file: string, folder: string): boolean =>
  file === folder || file.startsWith(`${folder}/`);

function layerOf(file: string): Layer | undefined {
  return LAYERS.filter(({ folder }) => within(file, folder)).sort(
    (a, b) => b.folder.length - a.folder.length,
  )[0];
}

const IMPORT =
  /(?:^|\n)\s*(?:import|export)\s[^'";]*?from\s*'([^']+)'|import\s*\(\s*'([^']+)'\s*\)|(?:^|\n)\s*import\s*'([^']+)'/g;

/** What is wrong with the imports of one file; empty when all is well. */
export function checkImports(file: string, text: string): string[] {
  const layer = layerOf(file);
  if (layer === undefined) return [`${file}: no layer of check-layers.ts covers it`];
  const problems: string[] = [];
  for (const match of text.matchAll(IMPORT)) {
    const specifier = match[1] ?? match[2] ?? match[3] ?? '';
    const problem = specifier.startsWith('.')
      ? checkRelative(file, layer, specifier)
      : checkPackage(layer, specifier);
    if (problem !== undefined) problems.push(`${file}: ${problem}`);
  }
  return problems;
}

function checkRelative(file: string, layer: Layer, specifier: string): string | undefined {
  const target = path.posix
    .normalize(path.posix.join(path.posix.dirname(file), specifier))
    .replace(/\.(c?)js$/, '.$1ts');
  if (DRIVER_FILES.test(target) && !MAY_NAME_DRIVERS.test(file)) {
    return `names a driver: ${target}`;
  }
  const own = layerOf(target) === layer;
  if (own || layer.may.some((folder) => within(target, folder))) return undefined;
  return `may not import ${target}`;
}

function checkPackage(layer: Layer, specifier: string): string | undefined {
  if (layer.folder.startsWith('protocol')) return `is pure and may not import ${specifier}`;
  const name = specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
  if (!RESTRICTED.includes(name) || layer.packages?.includes(name) === true) return undefined;
  return `may not import the package ${name}`;
}

/** Checks every source file below `root`. */
export function checkLayers(root: string): string[] {
  const files = sourceFiles(root, ['src', 'protocol']);
  return files.flatMap((file) => checkImports(file, readFileSync(path.join(root, file), 'utf8')));
}
