// SPDX-License-Identifier: MIT
import { createHash } from 'node:crypto';
import { mkdir, readFile, realpath, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runPeer } from './peers.js';
import type { Scope } from './temp.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
/** All that installing and running may need: no compiler, no make, no python. */
const PROGRAMS = ['sh', 'env'];

interface LockEntry {
  readonly dev?: boolean;
  readonly [key: string]: unknown;
}

interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly [key: string]: unknown;
}

/** A project of somebody who has installed what `npm pack` made. */
export interface InstalledPackage {
  readonly folder: string;
  /** Files in the tarball. */
  readonly files: readonly string[];
  /** Runs with a PATH on which there is no compiler. */
  readonly env: Readonly<Record<string, string>>;
  readonly version: string;
}

/** Packs what has been built (the files are not made anew) and installs it in a fresh folder. */
export async function installPackage(scope: Scope): Promise<InstalledPackage> {
  const folder = await scope.tempDir();
  const packed = await runPeer(
    'npm',
    ['pack', '--ignore-scripts', '--json', '--pack-destination', folder],
    { cwd: ROOT },
  );
  const [pack] = JSON.parse(packed.stdout) as [{ filename: string; files: { path: string }[] }];
  const manifest = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as Manifest;
  await writeProject(folder, pack.filename, manifest);
  const env = { PATH: await pathWithoutCompiler(scope), npm_config_update_notifier: 'false' };
  // The same versions as here, from npm's cache where it has them.
  const install = ['npm', 'ci', '--prefer-offline', '--no-audit', '--no-fund'];
  await runWithPath(env, install, folder);
  return { folder, files: pack.files.map(({ path }) => path), env, version: manifest.version };
}

/** Runs a program of the installed project. @throws Error when it ends with another status than 0 */
export async function runWithPath(
  env: Readonly<Record<string, string>>,
  [program = '', ...args]: readonly string[],
  cwd: string,
): Promise<string> {
  // Through env, because a peer's own PATH has the system's folders in front.
  const settings = Object.entries(env).map(([name, value]) => `${name}=${value}`);
  return (await runPeer('/usr/bin/env', [...settings, program, ...args], { cwd })).stdout;
}

/** A project that depends on the tarball, with our locked versions of what that depends on. */
async function writeProject(folder: string, tarball: string, manifest: Manifest): Promise<void> {
  const lock = JSON.parse(await readFile(join(ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, LockEntry>;
  };
  const { name, version, license, dependencies, bin, engines } = manifest;
  const hash = createHash('sha512').update(await readFile(join(folder, tarball)));
  const project = {
    name: 'project',
    version: '1.0.0',
    type: 'module',
    dependencies: { [name]: `file:${tarball}` },
  };
  const packages: Record<string, unknown> = {
    '': project,
    [`node_modules/${name}`]: {
      ...{ version, license, dependencies, bin, engines },
      resolved: `file:${tarball}`,
      integrity: `sha512-${hash.digest('base64')}`,
    },
  };
  for (const [place, entry] of Object.entries(lock.packages)) {
    if (place !== '' && entry.dev !== true) packages[place] = entry;
  }
  const { name: projectName } = project;
  const projectLock = { name: projectName, lockfileVersion: 3, requires: true, packages };
  await writeFile(join(folder, 'package.json'), JSON.stringify(project));
  await writeFile(join(folder, 'package-lock.json'), JSON.stringify(projectLock));
}

/** A folder with node, npm and a shell. */
async function pathWithoutCompiler(scope: Scope): Promise<string> {
  const bin = join(await scope.tempDir(), 'bin');
  await mkdir(bin);
  const node = process.execPath;
  await symlink(node, join(bin, 'node'));
  for (const name of ['npm', 'npx']) {
    const { stdout } = await runPeer('/bin/sh', ['-c', `command -v ${name}`]);
    await symlink(await realpath(stdout.trim()), join(bin, name));
  }
  for (const name of PROGRAMS) await symlink(join('/usr/bin', name), join(bin, name));
  return bin;
}

/** Where this project's own tools are, to compile against the installed one. */
export const TOOLS = join(ROOT, 'node_modules');
