// SPDX-License-Identifier: MIT
/** A client that keeps writing to a disk, and knows what the disk has to show at any moment. */
import { NbdClient } from '../../src/nbd.js';
import { pattern } from './qcow2.js';
import type { SeededRandom } from './seeded-random.js';

/** A change that is under way: the disk shows what was there before it, or what comes after it. */
interface Request {
  readonly offset: number;
  readonly length: number;
  /** What the range holds afterwards; undefined for a read. */
  readonly after: Buffer | undefined;
  /** It takes effect in parts. */
  readonly partly: boolean;
  readonly done: Promise<void>;
}

type Change = Pick<Request, 'offset' | 'partly'> & { readonly after: Buffer };

/**
 * What a disk held at some instant between `open` and `close`. Requests of that time may have come
 * before it or after it, each as a whole.
 */
export class Moment {
  readonly #unsure: Change[] = [];

  constructor(readonly bytes: Buffer) {}

  add({ offset, after, partly }: Request): void {
    if (after !== undefined) this.#unsure.push({ offset, after, partly });
  }

  /** The same, for another node that is to hold it. */
  copy(): Moment {
    const copy = new Moment(Buffer.from(this.bytes));
    copy.#unsure.push(...this.#unsure);
    return copy;
  }

  overlaps(offset: number, length: number): boolean {
    return this.#unsure.some((one) => meet(one.offset, one.after.byteLength, offset, length));
  }

  /** Says where `seen` differs; from then on what it showed where nobody could know is expected. */
  difference(seen: Buffer): string | undefined {
    for (const change of this.#unsure.splice(0)) this.#learn(seen, change);
    return firstDifference(seen, this.bytes);
  }

  #learn(seen: Buffer, { offset, after, partly }: Change): void {
    const shown = seen.subarray(offset, offset + after.byteLength);
    if (shown.equals(after)) after.copy(this.bytes, offset);
    if (!partly) return;
    for (let at = 0; at < shown.byteLength; at++) {
      const byte = shown[at];
      if (byte !== undefined && byte === after[at]) this.bytes[offset + at] = byte;
    }
  }
}

const meet = (at: number, length: number, other: number, otherLength: number): boolean =>
  at < other + otherLength && other < at + length;

export function firstDifference(seen: Buffer, expected: Buffer): string | undefined {
  if (seen.byteLength !== expected.byteLength) {
    return `${seen.byteLength} bytes instead of ${expected.byteLength}`;
  }
  if (seen.equals(expected)) return undefined;
  let at = 0;
  while (seen[at] === expected[at]) at++;
  let end = seen.byteLength;
  while (seen[end - 1] === expected[end - 1]) end--;
  const hex = (bytes: Buffer): string => bytes.subarray(at, at + 8).toString('hex');
  return `bytes ${at} to ${end}: ${hex(seen)} instead of ${hex(expected)}`;
}

export class ChainGuest {
  readonly #client: NbdClient;
  readonly #random: SeededRandom;
  readonly #running = new Set<Request>();
  readonly #moments = new Set<Moment>();
  /** Errors and wrong bytes that the client has seen. */
  readonly faults: string[] = [];
  /** All of the disk, which may be longer than what the client knew when it connected. */
  model: Buffer;
  /** Is told when a write begins; what it returns is called when it has been done. */
  watch: ((offset: number, length: number) => () => void) | undefined;
  #writes = 0;

  private constructor(client: NbdClient, model: Buffer, random: SeededRandom) {
    this.#client = client;
    this.model = model;
    this.#random = random;
  }

  static async connect(socket: string, content: Buffer, random: SeededRandom): Promise<ChainGuest> {
    const client = await NbdClient.connect({
      address: { type: 'unix', path: socket },
      exportName: 'disk',
      connections: 1,
    });
    return new ChainGuest(client, Buffer.from(content), random);
  }

  /** Bytes that the client may use. */
  get size(): number {
    return this.#client.size;
  }

  /** Starts some requests that don't overlap, and waits for none of them. */
  burst(count: number): void {
    for (let nth = 0; nth < count; nth++) this.#submit();
  }

  /** Waits until nothing is under way. */
  async settle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all([...this.#running].map(({ done }) => done));
  }

  /** What the disk shows at an instant between now and `close`. */
  moment(): { readonly moment: Moment; close(): Moment } {
    const moment = new Moment(Buffer.from(this.model));
    for (const request of this.#running) moment.add(request);
    this.#moments.add(moment);
    const close = (): Moment => {
      this.#moments.delete(moment);
      return moment;
    };
    return { moment, close };
  }

  /** The disk has another size now; what is new reads as zeroes. */
  resize(size: number): void {
    if (size === this.model.byteLength) return;
    const next = Buffer.alloc(size);
    this.model.copy(next);
    this.model = next;
  }

  /** Reads everything. Nothing may be under way. */
  async check(): Promise<void> {
    const seen = Buffer.alloc(this.size, 0xee);
    await this.#client.read(0, seen);
    const difference = firstDifference(seen, this.model.subarray(0, this.size));
    if (difference !== undefined) this.faults.push(`the client sees ${difference}`);
  }

  flush(): Promise<void> {
    return this.#client.flush();
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  #submit(): void {
    const random = this.#random;
    const unit = random.pick([1, 512, 4096, 65536]);
    const most = random.pick([1024, 20_000, 100_000, 300_000]);
    const offset = Math.floor(random.int(this.size) / unit) * unit;
    const length = Math.min(1 + random.int(most), this.size - offset);
    const taken = [...this.#running].some((one) => meet(one.offset, one.length, offset, length));
    if (taken || [...this.#moments].some((moment) => moment.overlaps(offset, length))) return;
    const kind = random.int(12);
    if (kind < 7) this.#run(offset, length, this.#bytes(length), 'write');
    else if (kind < 9) this.#run(offset, length, Buffer.alloc(length), 'zero');
    else if (kind < 10) this.#run(offset, length, Buffer.alloc(length), 'discard');
    else this.#run(offset, length, undefined, 'read');
  }

  #bytes(length: number): Buffer {
    this.#writes++;
    return pattern(length, this.#writes);
  }

  #run(offset: number, length: number, after: Buffer | undefined, kind: string): void {
    const ended = after === undefined ? undefined : this.watch?.(offset, length);
    const work = async (): Promise<void> => {
      try {
        await this.#request(offset, length, after, kind);
        after?.copy(this.model, offset);
        ended?.();
      } catch (error) {
        this.faults.push(`${kind} at ${offset}, ${length} bytes: ${String(error)}`);
      } finally {
        this.#running.delete(request);
      }
    };
    const partly = kind === 'discard';
    const request: Request = { offset, length, after, partly, done: Promise.resolve().then(work) };
    this.#running.add(request);
    for (const moment of this.#moments) moment.add(request);
  }

  async #request(
    offset: number,
    length: number,
    after: Buffer | undefined,
    kind: string,
  ): Promise<void> {
    const client = this.#client;
    if (kind === 'zero') return client.writeZeroes(offset, length);
    if (kind === 'write' && after !== undefined) {
      return client.write(offset, after, { fua: this.#random.chance(0.05) });
    }
    if (kind === 'discard') {
      // What was only discarded may read as anything: so the range is made known again.
      await client.trim(offset, length);
      return client.writeZeroes(offset, length);
    }
    const seen = Buffer.alloc(length, 0xee);
    await client.read(offset, seen);
    const difference = firstDifference(seen, this.model.subarray(offset, offset + length));
    if (difference !== undefined) this.faults.push(`read at ${offset}: ${difference}`);
  }
}
