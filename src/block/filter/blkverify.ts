// SPDX-License-Identifier: MIT
/** Filter that does everything twice and compares, for tests of formats. @see qapi BlockdevOptionsBlkverify */
import { BlockError, errnoName } from '../../base/errors.js';
import type { MaybePromise } from '../../base/maybe-promise.js';
import type {
  ChildRole,
  DriverDefinition,
  DriverFeatures,
  PreallocationMode,
  RequestFlags,
} from '../block-driver.js';
import type { ChildEdge } from '../edge.js';
import { filterPermissions, PERM_RESIZE, type Permissions } from '../permissions.js';
import { jsonFilename, PassThroughDriver } from './pass-through.js';

export const blkverifyDefinition: DriverDefinition = {
  name: 'blkverify',
  kind: 'filter',
  children: [
    { key: 'test', role: 'test', required: true },
    { key: 'raw', role: 'raw', required: true },
  ],
  open: (_options, context) => new BlkverifyDriver(context.child('test'), context.child('raw')),
};

interface Request {
  readonly operation: 'read' | 'write';
  readonly offset: number;
  readonly length: number;
}

/** How one of the two ended. */
type Outcome = { readonly error?: unknown };

/** `test` is under test, `raw` is known to be right. A difference fails the request. */
class BlkverifyDriver extends PassThroughDriver {
  readonly #raw: ChildEdge;
  override readonly features: DriverFeatures = {
    fua: true,
    writeZeroes: false,
    discard: false,
    backing: false,
    multiConn: false,
  };

  constructor(test: ChildEdge, raw: ChildEdge) {
    super('blkverify', test);
    this.#raw = raw;
  }

  override get readOnly(): boolean {
    return this.child.node.readOnly || this.#raw.node.readOnly;
  }

  override get filename(): string {
    const [test, raw] = [this.child, this.#raw].map(({ node }) => node.driver.filename);
    const plain = [test, raw].every((name) => name !== '' && name?.startsWith('json:') === false);
    if (plain) return `blkverify:${raw}:${test}`;
    return jsonFilename('blkverify', { test: this.child, raw: this.#raw });
  }

  childPermissions(role: ChildRole, parents: Permissions): Permissions {
    const { taken, shared } = filterPermissions(parents);
    return { taken, shared: role === 'test' ? shared & ~PERM_RESIZE : shared };
  }

  override async read(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    const expected = Buffer.allocUnsafeSlow(buffer.byteLength);
    const request: Request = { operation: 'read', offset, length: buffer.byteLength };
    await both(
      request,
      () => this.child.read(offset, buffer, flags),
      () => this.#raw.read(offset, expected, flags),
    );
    if (buffer.equals(expected)) return;
    const at = buffer.findIndex((byte, index) => byte !== expected[index]);
    throw mismatch(request, `contents mismatch at offset ${offset + at}`);
  }

  override write(offset: number, buffer: Buffer, flags: RequestFlags): Promise<void> {
    return both(
      { operation: 'write', offset, length: buffer.byteLength },
      () => this.child.write(offset, buffer, flags),
      () => this.#raw.write(offset, buffer, flags),
    );
  }

  /** Both lose it the same way only when both are written, which the node does in its place. */
  override writeZeroes(offset: number, length: number): never {
    throw new BlockError('DF_NOT_SUPPORTED', 'blkverify writes zeroes as data', { offset, length });
  }

  /** A discarded range may read as anything, so it can't be compared. */
  override discard(offset: number, length: number): never {
    throw new BlockError('DF_NOT_SUPPORTED', 'blkverify does not discard', { offset, length });
  }

  override async truncate(
    size: number,
    options: { exact: boolean; preallocation: PreallocationMode },
  ): Promise<void> {
    await this.child.truncate(size, options);
    await this.#raw.truncate(size, options);
  }
}

/** Runs a request on both; they must end alike. */
async function both(
  request: Request,
  test: () => MaybePromise<void>,
  raw: () => MaybePromise<void>,
): Promise<void> {
  const [ofTest, ofRaw] = await Promise.all([outcome(test), outcome(raw)]);
  if (outcomeName(ofTest) !== outcomeName(ofRaw)) {
    const text = `return value mismatch ${outcomeName(ofTest)} != ${outcomeName(ofRaw)}`;
    throw mismatch(request, text, ofTest.error ?? ofRaw.error);
  }
  if (ofTest.error !== undefined) throw ofTest.error;
}

async function outcome(run: () => MaybePromise<void>): Promise<Outcome> {
  try {
    await run();
    return {};
  } catch (error) {
    return { error };
  }
}

function outcomeName({ error }: Outcome): string {
  if (error === undefined) return 'success';
  return errnoName(error) ?? (error instanceof BlockError ? error.code : String(error));
}

function mismatch({ operation, offset, length }: Request, text: string, cause?: unknown) {
  return new BlockError(
    'DF_IO',
    `blkverify: ${operation} offset=${offset} bytes=${length} ${text}`,
    { op: operation, offset, length },
    { cause },
  );
}
