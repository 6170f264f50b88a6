// SPDX-License-Identifier: MIT
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';

/** Debian keeps some peers in sbin, and nbdsh needs Debian's own python, so these come first. */
export const PEER_PATH = `/usr/sbin:/usr/bin:/sbin:/bin:${process.env.PATH ?? ''}`;

/** Output kept of a program that runs wild; nothing a test looks at is longer. Bytes. */
const OUTPUT_MAX = 64 * 1024 * 1024;
const PEER_TIMEOUT_MS = 120_000;
/** qemu-img times its key derivation by its CPU time, and gives up about that now and then. */
const NO_CPU_TIME = 'Unable to get accurate CPU usage';
const CPU_TIME_TRIES = 50;

export interface PeerOptions {
  readonly input?: string | Uint8Array;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** The program is killed, and the call fails, after this time. */
  readonly timeoutMs?: number;
}

export interface PeerResult {
  /** Exit status; 128 plus nothing useful when a signal ended the program, see `signal`. */
  readonly code: number;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stdoutBytes: Buffer;
  readonly stderr: string;
}

const children = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
});

/** Starts a program that dies with the test process at the latest. */
export function spawnTracked(program: string, args: readonly string[], options: SpawnOptions = {}) {
  const env = { ...process.env, LC_ALL: 'C', ...options.env, PATH: PEER_PATH };
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options, env });
  children.add(child);
  child.once('close', () => children.delete(child));
  return child;
}

/** Collects what a stream says, up to a bound. */
export function collect(stream: NodeJS.ReadableStream | null): { bytes(): Buffer; text(): string } {
  const chunks: Buffer[] = [];
  let total = 0;
  stream?.on('data', (chunk: Buffer) => {
    if (total < OUTPUT_MAX) chunks.push(chunk);
    total += chunk.length;
  });
  const bytes = () => Buffer.concat(chunks);
  return { bytes, text: () => bytes().toString('utf8') };
}

/**
 * Runs a peer to its end and reports its status, whatever that is. One that could not measure its
 * own CPU time is run again.
 *
 * @throws Error when the program is not installed or does not end in time: a missing peer fails a
 *   test, it never skips one.
 */
export async function tryPeer(
  program: string,
  args: readonly string[],
  options: PeerOptions = {},
): Promise<PeerResult> {
  for (let tries = 1; ; tries++) {
    const result = await runOnce(program, args, options);
    if (tries === CPU_TIME_TRIES || !result.stderr.includes(NO_CPU_TIME)) return result;
  }
}

async function runOnce(
  program: string,
  args: readonly string[],
  options: PeerOptions,
): Promise<PeerResult> {
  const stdin = options.input === undefined ? 'ignore' : 'pipe';
  const child = spawnTracked(program, args, {
    stdio: [stdin, 'pipe', 'pipe'],
    ...(options.env === undefined ? {} : { env: { ...process.env, ...options.env } }),
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  const stdout = collect(child.stdout);
  const stderr = collect(child.stderr);
  child.stdin?.on('error', () => {}); // a peer may leave without reading; its status tells
  child.stdin?.end(options.input);
  const timeoutMs = options.timeoutMs ?? PEER_TIMEOUT_MS;
  const status = await statusOf(child, { program, timeoutMs });
  if (status === 'late') {
    throw new Error(
      `${program} ${args.join(' ')} did not end in ${timeoutMs} ms\n` +
        `${stdout.text().slice(-4000)}\n${stderr.text().slice(-4000)}`,
    );
  }
  const stdoutBytes = stdout.bytes();
  return { ...status, stdoutBytes, stdout: stdoutBytes.toString('utf8'), stderr: stderr.text() };
}

/** How a program ended, once all that it said has come; `late`: it was killed after its time. */
async function statusOf(
  child: ChildProcess,
  { program, timeoutMs }: { readonly program: string; readonly timeoutMs: number },
): Promise<Pick<PeerResult, 'code' | 'signal'> | 'late'> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  try {
    const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>(
      (resolve, reject) => {
        child.once('error', (cause) => {
          reject(new Error(`cannot run ${program}; scripts/install-peers installs it`, { cause }));
        });
        child.once('close', (...status) => resolve(status));
      },
    );
    return late ? 'late' : { code: code ?? 128, signal };
  } finally {
    clearTimeout(timer);
    children.delete(child);
  }
}

/** Runs a peer that has to succeed. @throws Error with its output when it does not */
export async function runPeer(
  program: string,
  args: readonly string[],
  options: PeerOptions = {},
): Promise<PeerResult> {
  const result = await tryPeer(program, args, options);
  if (result.code !== 0) {
    throw new Error(
      `${program} ${args.join(' ')}: exit status ${result.code} ${result.signal ?? ''}\n` +
        `${result.stdout.slice(-4000)}\n${result.stderr.slice(-4000)}`,
    );
  }
  return result;
}

/** Runs a peer that has to succeed and parses what it prints. The caller names the type. */
export async function runPeerJson<T>(program: string, args: readonly string[]): Promise<T> {
  return JSON.parse((await runPeer(program, args)).stdout) as T;
}
