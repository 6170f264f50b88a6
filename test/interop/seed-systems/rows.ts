// SPDX-License-Identifier: MIT
/**
 * What the documents name that this project started from, by number, each with the tests that show that
 * it works. A test is its file below test/ and its title up to a bracket; a dialogue is its file alone.
 */

const FLOWS = 'interop/management-flows/';
const GUIDE = 'interop/seed-003/';
const OLDER = 'interop/seed-systems/';

export interface Row {
  readonly what: string;
  readonly tests: readonly string[];
  /** Why there is no test. */
  readonly later?: string;
}

const row = (what: string, ...tests: readonly string[]): Row => ({ what, tests });
const later = (what: string, reason: string): Row => ({ what, tests: [], later: reason });

/** Sections, and in each how many numbers it has. */
export const SECTIONS: Readonly<Record<string, number>> = {
  1: 17,
  2: 16,
  3: 17,
  4: 6,
  5: 7,
  6: 5,
  7: 5,
  8: 5,
  9: 6,
};

export const ROWS: Readonly<Record<string, Row>> = {
  '1.1': row(
    'blockdev-add',
    `${OLDER}blockdev-add-refused.flow`,
    'unit/block/graph.test.ts: refuses a node name that starts with a digit, has a space, or is too long',
  ),
  '1.2': row('blockdev-del', `${OLDER}blockdev-del-refused.flow`),
  '1.3': row(
    '--blockdev with dotted keys',
    'scenario/nodes.test.ts: is the same from the command line and from blockdev-add',
  ),
  '1.4': row(
    'a live guest above the chain',
    `${GUIDE}blockdev-snapshot-sync-chain.flow`,
    'scenario/chains.test.ts: an overlay that was named stays without users, and can be deleted',
  ),
  '1.5': row(
    'monitor sockets',
    'scenario/transports.test.ts: answer side by side, and each to one client after the other',
    'unit/qmp/transport.test.ts: stdio serves the streams it was given',
    'unit/qmp/transport.test.ts: serves TCP on %s and tells its port',
  ),
  '1.6': row(
    'options of every node',
    'unit/block/driver/file.test.ts: has the file open for writing only while a parent writes',
    'unit/block/driver/file.test.ts: reads beside a writer that shares nothing, with force-share',
    'unit/block/node.test.ts: turns written zeroes into write-zeroes with detect-zeroes',
    'unit/block/node.test.ts: does not discard unless the node was told to',
  ),
  '1.7': row(
    'drivers in the introspection, of those that are there',
    'interop/qmp-introspection.test.ts: introspection agrees with that of qemu-storage-daemon',
    `${OLDER}drivers.test.ts: each driver of the introspection is known to blockdev-add, and no other`,
  ),
  '1.8': row(
    'what is not there is absent from the introspection',
    `${OLDER}drivers.test.ts: each driver of the introspection is known to blockdev-add, and no other`,
  ),
  '1.9': row(
    'cache-clean-interval',
    `${OLDER}cache-clean-interval.flow`,
    'unit/block/driver/qcow2/table-cache.test.ts: lets go of what nobody has looked at between two calls',
  ),
  '1.10': row(
    'encrypted qcow2',
    'interop/qcow2-encryption.test.ts: made by qemu-img (%s): each reads what the other writes',
    'interop/qcow2-encryption.test.ts: made here (as %s): each reads what the other writes',
    'interop/qcow2-encryption.test.ts: a key that does not fit is refused in the words of qemu-io',
  ),
  '1.11': row(
    'throttle and throttle-group',
    'scenario/nodes.test.ts: shares the limits of its throttle group, which change while requests wait',
    'unit/block/throttle/throttle-group.test.ts: lets pass what qemu-storage-daemon 7.2 lets pass with the same burst',
  ),
  '1.12': row(
    'quorum, and a mirror that replaces a copy',
    'interop/quorum-dialogue.test.ts: reports the same of reads, and repairs the same',
    'scenario/quorum.test.ts: puts a sound copy in the place of a damaged one under a client that writes',
  ),
  '1.13': row(
    'block_resize',
    `${OLDER}block-resize.flow`,
    `${OLDER}block-resize-names.flow`,
    `${FLOWS}resize-threshold.flow`,
  ),
  '1.14': row('block_passwd', `${OLDER}block-passwd.flow`),
  '1.15': row(
    'locks of images',
    'scenario/nodes.test.ts: keep other programs out of what the daemon does not share',
    'unit/block/driver/file.test.ts: holds the locks that qemu holds for the same permissions',
  ),
  '1.16': row(
    'permissions',
    'unit/block/graph.test.ts: refuses what another parent does not share, naming node, permission and both parents',
    `${OLDER}graph.test.ts: the graph of a chain is that of QEMU, edge by edge`,
  ),
  '1.17': row('the chain and its active layer', `${GUIDE}blockdev-snapshot-sync-chain.flow`),

  '2.1': row(
    'block-dirty-bitmap-add',
    `${GUIDE}bitmap-add-merge-clear-remove.flow`,
    `${GUIDE}bitmap-granularity.flow`,
  ),
  '2.2': row(
    'names of bitmaps',
    `${GUIDE}bitmap-add-merge-clear-remove.flow`,
    'interop/qcow2-bitmaps.test.ts: are refused where they can not be stored, in the words of QEMU',
  ),
  '2.3': row(
    'block-dirty-bitmap-remove',
    `${GUIDE}bitmap-add-merge-clear-remove.flow`,
    `${GUIDE}bitmap-failure-and-retry.flow`,
    'interop/qcow2-bitmaps.test.ts: can be removed one by one, after which nothing has leaked',
  ),
  '2.4': row('block-dirty-bitmap-clear', `${GUIDE}bitmap-empty-incremental.flow`),
  '2.5': row(
    'block-dirty-bitmap-enable and -disable',
    `${GUIDE}bitmap-add-merge-clear-remove.flow`,
  ),
  '2.6': row(
    'block-dirty-bitmap-merge',
    `${GUIDE}bitmap-add-merge-clear-remove.flow`,
    'unit/block/bitmap/dirty-bitmap.test.ts: refuses to merge bitmaps of different sizes and leaves the target as it was',
  ),
  '2.7': row(
    'digest of a bitmap',
    `${FLOWS}bitmaps.flow`,
    'unit/block/bitmap/qemu-digest.test.ts: has the digest and the count that qemu-storage-daemon has for the same writes',
  ),
  '2.8': row('what is told of a bitmap', `${GUIDE}bitmap-add-merge-clear-remove.flow`),
  '2.9': row(
    'active, disabled, frozen and locked',
    `${OLDER}bitmap-status.flow`,
    `${OLDER}bitmap-successor.flow`,
    'scenario/bitmap.test.ts: are shown to NBD clients of an export, and are busy as long as it lasts',
  ),
  '2.10': row('successor and roll-back', `${GUIDE}bitmap-failure-and-retry.flow`),
  '2.11': row(
    'flags of stored bitmaps',
    'interop/qcow2-bitmaps.test.ts: are inconsistent for both when the writer was killed, and can only be removed',
    'interop/img-bitmap.test.ts: does to bitmaps what qemu-img does, and describes them as it does',
  ),
  '2.12': row(
    'bitmaps after a crash',
    'scenario/persistent-bitmap.test.ts: a daemon that is killed leaves its bitmaps inconsistent, the image sound',
    'interop/qcow2-bitmaps-power-loss.test.ts: leaves no bitmap that lies: seed $',
  ),
  '2.13': row(
    'sync and bitmap of a backup',
    `${FLOWS}bitmap-modes.flow`,
    'scenario/backup.test.ts: is refused in the words of QEMU',
  ),
  '2.14': row('chain of increments', `${GUIDE}bitmap-incremental-backups.flow`),
  '2.15': row('new anchor', `${GUIDE}bitmap-anchor.flow`),
  '2.16': row('a bitmap moves across a snapshot', `${OLDER}transaction-abort-moves-bitmap.flow`),

  '3.1': row(
    'block-stream',
    `${GUIDE}block-stream-case-1.flow`,
    `${GUIDE}block-stream-case-2.flow`,
    `${GUIDE}block-stream-case-3.flow`,
    `${GUIDE}block-stream-restarted.flow`,
  ),
  '3.2': row(
    'block-commit',
    `${GUIDE}block-commit-case-1.flow`,
    `${GUIDE}block-commit-case-2.flow`,
    `${GUIDE}block-commit-case-3.flow`,
    `${GUIDE}block-commit-case-3-cancelled.flow`,
    `${GUIDE}block-commit-case-4.flow`,
    `${GUIDE}block-commit-case-5.flow`,
    `${OLDER}block-commit-errors.flow`,
    `${OLDER}block-commit-default-base.flow`,
  ),
  '3.3': row(
    'layers by file name',
    `${GUIDE}block-commit-case-1.flow`,
    `${GUIDE}live-merge-old-first.flow`,
    `${GUIDE}live-merge-old-second.flow`,
  ),
  '3.4': row(
    'drive-mirror',
    `${GUIDE}drive-mirror-cancelled-at-ready.flow`,
    `${GUIDE}drive-mirror-completed.flow`,
    `${GUIDE}drive-mirror-cancelled-early.flow`,
  ),
  '3.5': row(
    'blockdev-mirror',
    `${GUIDE}blockdev-mirror.flow`,
    `${GUIDE}blockdev-mirror-cancelled-at-ready.flow`,
  ),
  '3.6': row(
    'modes full, top, none and incremental',
    `${GUIDE}drive-backup.flow`,
    `${GUIDE}mirror-sync-top.flow`,
    `${GUIDE}mirror-sync-none.flow`,
    `${GUIDE}backup-sync-top.flow`,
    `${GUIDE}backup-sync-none.flow`,
    `${GUIDE}bitmap-incremental-backups.flow`,
  ),
  '3.7': row(
    'cancel and complete of what is ready',
    `${GUIDE}drive-mirror-cancelled-at-ready.flow`,
    `${GUIDE}drive-mirror-completed.flow`,
    `${FLOWS}mirror-target-full.flow`,
  ),
  '3.8': row(
    'drive-backup and blockdev-backup',
    `${GUIDE}drive-backup.flow`,
    `${GUIDE}blockdev-backup.flow`,
  ),
  '3.9': row('a target of another size', `${GUIDE}blockdev-backup-target-size.flow`),
  '3.10': row(
    'query-block-jobs',
    `${GUIDE}blockdev-mirror.flow`,
    'interop/commit-dialogue.test.ts: tells its life %s, and keeps others out',
  ),
  '3.11': row(
    'verbs of jobs in their states',
    `${FLOWS}mirror-verbs.flow`,
    'fault/job-schedules-daemon.test.ts: a job of a daemon under random writes, verbs and faults',
  ),
  '3.12': row('no job-id', `${GUIDE}bitmap-backup-without-job-id.flow`),
  '3.13': row(
    'events of jobs in their order',
    `${GUIDE}block-commit-case-3.flow`,
    `${GUIDE}blockdev-backup.flow`,
    `${FLOWS}migrate-manual-end.flow`,
  ),
  '3.14': row('error policies', `${FLOWS}mirror-target-full.flow`),
  '3.15': row(
    'speed',
    `${FLOWS}copy-and-pivot.flow`,
    'scenario/core-mirror.test.ts: fails, and leaves the source as it was, when the target dies',
  ),
  '3.16': row(
    'compress',
    `${OLDER}compress.test.ts: a backup with compress writes compressed clusters`,
  ),
  '3.17': row(
    'shallow storage migration',
    `${GUIDE}live-storage-migration.flow`,
    `${FLOWS}seed-migration-emulator.flow`,
  ),

  '4.1': row(
    'all of a transaction or nothing',
    `${OLDER}transaction-abort-moves-bitmap.flow`,
    'scenario/transaction.test.ts: undoes everything, in reverse, when one action fails',
    'scenario/chains.test.ts: takes snapshots back when the transaction fails, the last first',
  ),
  '4.2': row('all twelve actions', `${OLDER}transaction-actions.flow`),
  '4.3': row('abort', `${OLDER}transaction-abort-moves-bitmap.flow`),
  '4.4': row(
    'completion modes',
    `${GUIDE}transaction-grouped.flow`,
    'scenario/transaction.test.ts: refuses to group what is no job',
  ),
  '4.5': row('partial failure', `${GUIDE}transaction-partial-failure.flow`),
  '4.6': row('internal snapshots taken back', `${OLDER}internal-snapshots.flow`),

  '5.1': row('blockdev-snapshot-sync', `${GUIDE}blockdev-snapshot-sync-chain.flow`),
  '5.2': row(
    'blockdev-snapshot',
    `${OLDER}transaction-abort-moves-bitmap.flow`,
    'scenario/chains.test.ts: a snapshot with an open overlay, refused with the reason where it is none',
  ),
  '5.3': row('modes of new images', `${OLDER}snapshot-modes.flow`),
  '5.4': row('blockdev-snapshot-internal-sync', `${OLDER}internal-snapshots.flow`),
  '5.5': row('blockdev-snapshot-delete-internal-sync', `${OLDER}internal-snapshots.flow`),
  '5.6': row('points in time', `${GUIDE}points-in-time.flow`),
  '5.7': row(
    'snapshot_blkdev and block_stream of the old monitor, by the commands of today',
    `${GUIDE}live-block-copy-old.flow`,
  ),

  '6.1': row(
    'nbd-server-start',
    `${OLDER}nbd-server.flow`,
    'unit/nbd/server/server.test.ts: serves TCP over IPv6',
    'unit/nbd/server/server.test.ts: serves an inherited descriptor that listens',
  ),
  '6.2': row('nbd-server-add', `${OLDER}nbd-server.flow`, `${GUIDE}live-storage-migration.flow`),
  '6.3': row(
    'nbd-server-remove and -stop',
    `${OLDER}nbd-server.flow`,
    'scenario/core-exports.test.ts: is refused while it has clients, in the words of QEMU, and done when they are gone',
  ),
  '6.4': row(
    'names of exports as file names and URIs',
    `${GUIDE}live-storage-migration.flow`,
    'scenario/drive.test.ts: moves a client to an NBD server that is named by URI, and writes on there',
  ),
  '6.5': row('raw over nbd', `${FLOWS}migrate-two-disks.flow`),

  '7.1': row(
    'blockdev-create',
    'interop/create-dialogue.test.ts: has the dialogue of qemu-storage-daemon',
    `${FLOWS}raw-create.flow`,
  ),
  '7.2': later('vmdk, made', 'formats other than qcow2, raw and luks come later'),
  '7.3': later('vmdk, its kinds', 'formats other than qcow2, raw and luks come later'),
  '7.4': row(
    'qemu-img beside the daemon',
    `${GUIDE}blockdev-backup.flow`,
    'interop/img.test.ts: finds what qemu-img finds, with the same words and status',
  ),
  '7.5': later('overlays in other formats', 'formats other than qcow2, raw and luks come later'),

  '8.1': row(
    'query-named-block-nodes',
    `${GUIDE}blockdev-snapshot-sync-chain.flow`,
    'scenario/core-exports.test.ts: show and guard nodes as QEMU does',
  ),
  '8.2': row(
    'x-debug-query-block-graph',
    `${OLDER}graph.test.ts: the graph of a chain is that of QEMU, edge by edge`,
  ),
  '8.3': row(
    'query-block, query-blockstats, query-jobs, query-block-exports',
    'interop/qmp-introspection.test.ts: introspection agrees with that of qemu-storage-daemon',
    'scenario/nodes.test.ts: with histograms counts each request once, beside true totals',
  ),
  '8.4': row(
    'events of trouble, and the write threshold',
    `${OLDER}image-corrupted.flow`,
    `${FLOWS}resize-threshold.flow`,
    'interop/qcow2-safety.test.ts: make an image corrupt, and mark it so',
  ),
  '8.5': row(
    'latency histograms',
    'scenario/nodes.test.ts: with histograms counts each request once, beside true totals',
  ),

  '9.1': row(
    'framing',
    'unit/qmp/monitor.test.ts: starts with version and capabilities',
    'unit/qmp/monitor.test.ts: runs nothing before capabilities are negotiated, and negotiates once',
    'unit/qmp/monitor.test.ts: gives back an id of any type',
  ),
  '9.2': row(
    'classes of errors',
    'unit/qmp/registry.test.ts: have the class that their code stands for',
    `${OLDER}block-commit-errors.flow`,
  ),
  '9.3': row(
    'quit',
    'unit/qmp/monitor.test.ts: quit is answered',
    'scenario/transports.test.ts: loses no write that was acknowledged',
    `${GUIDE}points-in-time.flow`,
  ),
  '9.4': row(
    'integers of 64 bits',
    'scenario/core-mirror.test.ts: echoes a speed beyond 2^53 exactly, in events and queries',
  ),
  '9.5': row(
    'cont, stop, query-status',
    'scenario/core-exports.test.ts: hold requests back and let them go on',
  ),
  '9.6': row(
    'commands as words, as qmp-shell has them',
    'unit/cli/words.test.ts: are JSON where they look like it, and text otherwise',
    'scenario/cli.test.ts: prints what a command returns, and the words of its error with status 1',
  ),
};
