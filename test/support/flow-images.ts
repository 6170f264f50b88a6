// SPDX-License-Identifier: MIT
/** What dialogues do with images: QEMU's tools make and judge them, in the folder of the dialogue. */
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KIB, MIB } from './images.js';
import { type PeerResult, runPeer, runPeerJson } from './peers.js';

const CHAIN_BYTES = 8 * MIB;

/** What each layer of the chain A <-- B <-- C <-- D <-- E writes: a byte, and where. */
const LAYERS = [
  { byte: 1, offset: 0, length: 4 * MIB },
  { byte: 2, offset: MIB, length: MIB },
  { byte: 3, offset: 2 * MIB, length: MIB + 64 * KIB },
  { byte: 4, offset: 3 * MIB, length: 2 * MIB },
  { byte: 5, offset: 4 * MIB + 512, length: MIB },
] as const;

/** What has to be said to the daemon for a chain, and written by its guest. */
export interface ChainSteps {
  /** The node of a.qcow2 and the guest's export. */
  open(): Promise<void>;
  snapshot(from: string, to: string): Promise<void>;
  io(command: string): Promise<void>;
}

/** The images of one dialogue. */
export class FlowImages {
  constructor(readonly dir: string) {}

  /**
   * a.qcow2 and overlays up to the last letter, each made by a snapshot and then written by the guest.
   * Leaves in p1.raw, p2.raw ... what the disk was when each overlay was made, in now.raw what it is.
   */
  async chain(steps: ChainSteps, last: string): Promise<void> {
    const model = Buffer.alloc(CHAIN_BYTES);
    await this.tool('qemu-img', ['create', '-q', '-f', 'qcow2', 'a.qcow2', String(CHAIN_BYTES)]);
    await steps.open();
    const names = ['A', 'B', 'C', 'D', 'E'].slice(0, 'ABCDE'.indexOf(last) + 1);
    for (const [at, { byte, offset, length }] of LAYERS.slice(0, names.length).entries()) {
      if (at > 0) {
        await writeFile(join(this.dir, `p${at}.raw`), model);
        await steps.snapshot(names[at - 1] ?? '', names[at] ?? '');
      }
      await steps.io(`write -P ${byte} ${offset} ${length}`);
      model.fill(byte, offset, offset + length);
    }
    await writeFile(join(this.dir, 'now.raw'), model);
  }

  /** Changes a raw image as a guest is said to have done it. Bytes, or with k or M. */
  async paint(file: string, [byte = '', offset = '', length = '']: readonly string[]) {
    const path = join(this.dir, file);
    const content = await readFile(path);
    content.fill(Number(byte), sizeOf(offset), sizeOf(offset) + sizeOf(length));
    await writeFile(path, content);
  }

  /** Writes bytes over a file. */
  async poke(file: string, offset: number, bytes: Uint8Array): Promise<void> {
    const handle = await open(join(this.dir, file), 'r+');
    try {
      await handle.write(bytes, 0, bytes.byteLength, offset);
    } finally {
      await handle.close();
    }
  }

  /** @throws Error when the image is not marked corrupt */
  async corrupt(file: string): Promise<void> {
    const { stdout } = await this.tool('qemu-img', ['info', '-f', 'qcow2', file]);
    if (!stdout.includes('corrupt: true')) throw new Error(stdout);
  }

  /** @throws Error when qemu-img finds a difference */
  async compare(left: string, right: string): Promise<void> {
    const formats = ['-f', formatOf(left), '-F', formatOf(right)];
    const { stdout } = await this.tool('qemu-img', ['compare', ...formats, left, right]);
    if (!stdout.includes('Images are identical.')) throw new Error(stdout);
  }

  /** @throws Error when the images below the first, as it and they note it, are others */
  async backing(names: readonly string[]): Promise<void> {
    const [top = ''] = names;
    const args = ['info', '-U', '--backing-chain', '--output=json', join(this.dir, top)];
    const chain = await runPeerJson<{ filename: string }[]>('qemu-img', args);
    const found = chain.map(({ filename }) => filename.slice(filename.lastIndexOf('/') + 1));
    if (found.join() !== names.join()) throw new Error(`the chain is ${found.join(' <-- ')}`);
  }

  /** Runs a program in the folder. @throws Error when it fails */
  tool(program: string, args: readonly string[]): Promise<PeerResult> {
    return runPeer(program, args, { cwd: this.dir });
  }
}

function formatOf(name: string): string {
  return name.endsWith('.raw') ? 'raw' : 'qcow2';
}

function sizeOf(text: string): number {
  const unit = { k: KIB, M: MIB }[text.slice(-1)] ?? 1;
  return Number.parseInt(text, 10) * unit;
}
