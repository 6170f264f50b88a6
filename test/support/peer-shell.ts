// SPDX-License-Identifier: MIT
/** Many short runs of peers from one shell: starting a program from a large process costs far more. */
import { spawnTracked } from './peers.js';
import type { Scope } from './temp.js';

export interface ShellResult {
  readonly code: number;
  /** Standard output and errors as they came. */
  readonly output: string;
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

export class PeerShell {
  readonly #child: ReturnType<typeof spawnTracked>;
  readonly #waiting: { resolve(result: ShellResult): void; reject(error: Error): void }[] = [];
  #output = '';

  constructor(scope: Scope) {
    const child = spawnTracked('sh', ['-s'], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child = child;
    child.stdout?.setEncoding('utf8');
    child.stdout?.on('data', (text: string) => this.#take(text));
    child.stdin?.on('error', () => {});
    child.once('error', (error) => this.#end(error));
    child.once('close', () => this.#end(new Error('the shell has ended')));
    scope.defer(() => {
      child.stdin?.end();
    });
  }

  /** Runs a program to its end, after those that were asked for before; 60 seconds at most. */
  run(program: string, args: readonly string[]): Promise<ShellResult> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      const command = ['timeout', '60', program, ...args].map(quoted).join(' ');
      this.#child.stdin?.write(`${command} </dev/null 2>&1; printf '\\n\\001%d\\002' $?\n`);
    });
  }

  /** Runs one that has to succeed. @throws Error with its output */
  async expect(program: string, args: readonly string[]): Promise<string> {
    const { code, output } = await this.run(program, args);
    if (code === 0) return output;
    throw new Error(`${program} ${args.join(' ')}: exit status ${code}\n${output.slice(-4000)}`);
  }

  /** Fails, with its output, when qemu-img finds anything wrong in a qcow2 image: leaks too. */
  async expectSound(path: string): Promise<void> {
    await this.expect('qemu-img', ['check', '-f', 'qcow2', path]);
  }

  #take(text: string): void {
    this.#output += text;
    for (;;) {
      const end = this.#output.indexOf('\x02');
      if (end < 0) return;
      const mark = this.#output.lastIndexOf('\n\x01', end);
      const output = this.#output.slice(0, mark);
      const code = Number(this.#output.slice(mark + 2, end));
      this.#output = this.#output.slice(end + 1);
      this.#waiting.shift()?.resolve({ code, output });
    }
  }

  #end(error: Error): void {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
