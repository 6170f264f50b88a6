// SPDX-License-Identifier: MIT
/** Every filter does what every node does: alone over a real file, and all of them in one stack. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileDriver } from '../../../../src/block/driver/file/driver.js';
import { PERM_CONSISTENT_READ, PERM_WRITE } from '../../../../src/block/permissions.js';
import { ThrottleGroup } from '../../../../src/block/throttle/throttle-group.js';
import { blockDriverSuite, type SuiteNode } from '../../../suite/block-driver.suite.js';
import { Scope } from '../../../support/temp.js';
import { filterGraph } from './filter-graph.js';

type Options = Record<string, unknown>;
/** The options of a filter (or a stack) over a node, with a second file for those that need one. */
type Stack = (file: Options, second: Options) => Options;

async function makeStack(size: number, stack: Stack): Promise<SuiteNode> {
  const scope = new Scope();
  const folder = await scope.tempDir();
  const filters = filterGraph();
  filters.graph.drivers.register(fileDriver);
  filters.groups.set('g', new ThrottleGroup('g', { 'iops-total': 1e6, 'bps-total': 1e10 }));
  const files: Options[] = [];
  for (const name of ['first', 'second']) {
    const filename = join(folder, name);
    await writeFile(filename, Buffer.alloc(size));
    files.push({ driver: 'file', filename });
  }
  const [first = {}, second = {}] = files;
  const node = await filters.add({ ...stack(first, second), discard: 'unmap' });
  const backend = await filters.use(node, PERM_CONSISTENT_READ | PERM_WRITE);
  scope.defer(() => filters.graph.closeAll());
  scope.defer(() => filters.graph.detach(backend));
  return {
    node: {
      get size() {
        return backend.size;
      },
      read: (...request) => backend.read(...request),
      readRange: (...request) => backend.readRange(...request),
      write: (...request) => backend.write(...request),
      writeZeroes: (...request) => backend.writeZeroes(...request),
      discard: (...request) => backend.discard(...request),
      flush: () => backend.flush(),
      blockStatus: (...request) => backend.blockStatus(...request),
      truncate: (...request) => node.truncate(...request),
    },
    close: () => scope.close(),
  };
}

const throttle: Stack = (file) => ({ driver: 'throttle', 'throttle-group': 'g', file });
const copyOnRead: Stack = (file) => ({ driver: 'copy-on-read', file });
const copyBeforeWrite: Stack = (file, target) => ({ driver: 'copy-before-write', file, target });
const blkdebug: Stack = (image) => ({
  ...{ driver: 'blkdebug', align: 4096, 'max-transfer': 65536, 'max-write-zero': 131072, image },
  'inject-error': [{ event: 'none', sector: 2 ** 40 }],
});
const blkverify: Stack = (test, raw) => ({ driver: 'blkverify', test, raw });
const blklogwrites: Stack = (file, log) => ({ driver: 'blklogwrites', file, log });
const preallocate: Stack = (file) => ({ driver: 'preallocate', 'prealloc-size': 65536, file });

blockDriverSuite('throttle', (size) => makeStack(size, throttle));
blockDriverSuite('copy-on-read', (size) => makeStack(size, copyOnRead));
blockDriverSuite('copy-before-write', (size) => makeStack(size, copyBeforeWrite), {
  resizes: false, // the snapshot has the size that the node had
});
blockDriverSuite('preallocate', (size) => makeStack(size, preallocate));
blockDriverSuite('blkdebug', (size) => makeStack(size, blkdebug));
blockDriverSuite('blkverify', (size) => makeStack(size, blkverify));
blockDriverSuite('blklogwrites', (size) => makeStack(size, blklogwrites));
for (const pattern of ['quorum', 'fifo']) {
  const quorum: Stack = (first, second) => ({
    ...{ driver: 'quorum', children: [first, second], 'vote-threshold': 2 },
    'read-pattern': pattern,
  });
  blockDriverSuite(`quorum, read pattern ${pattern}`, (size) => makeStack(size, quorum), {
    resizes: false, // copies of different sizes would be none
  });
}
blockDriverSuite('several filters, one above the other', (size) =>
  makeStack(size, (file, second) =>
    throttle(copyOnRead(blkdebug(blkverify(preallocate(file, {}), second), {}), {}), {}),
  ),
);
