// SPDX-License-Identifier: MIT
import { expect, it } from 'vitest';
import { startDaemon } from '../../support/daemon.js';
import { testScope } from '../../support/temp.js';

/** Drivers that the documents name and that are not here. */
const ABSENT = [
  ...['bochs', 'cloop', 'dmg', 'ftp', 'ftps', 'gluster', 'host_cdrom', 'http', 'https', 'iscsi'],
  ...['nfs', 'nvme', 'parallels', 'qcow', 'qed', 'rbd', 'replication', 'sheepdog', 'ssh', 'vdi'],
  ...['vhdx', 'vmdk', 'vpc', 'vvfat', 'vxhs'],
];

interface Entity {
  readonly name: string;
  readonly 'meta-type': string;
  readonly 'arg-type'?: string;
  readonly variants?: readonly { readonly case: string }[];
}

it('each driver of the introspection is known to blockdev-add, and no other', async () => {
  const scope = testScope();
  const qmp = await (await startDaemon(scope, [])).qmp(scope);
  const schema = await qmp.execute<Entity[]>('query-qmp-schema');
  const command = schema.find(({ name }) => name === 'blockdev-add');
  const options = schema.find(({ name }) => name === command?.['arg-type']);
  const listed = options?.variants?.map((variant) => variant.case) ?? [];
  expect(listed).toEqual(expect.arrayContaining(['file', 'nbd', 'qcow2', 'quorum', 'raw']));
  const unknown = (driver: string): string =>
    `Parameter 'driver' does not accept value '${driver}'`;
  for (const driver of listed) {
    // Without its options it may be refused, or not, but it is known.
    const { error } = await qmp.reply('blockdev-add', { driver, 'node-name': `x-${driver}` });
    expect(error?.desc).not.toBe(unknown(driver));
  }
  for (const driver of ABSENT) {
    expect(listed).not.toContain(driver);
    const { desc } = await qmp.refused('blockdev-add', { driver, 'node-name': 'x' });
    expect(desc).toBe(unknown(driver));
  }
});
