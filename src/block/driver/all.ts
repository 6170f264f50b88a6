// SPDX-License-Identifier: MIT
/** Registers each driver and filter, one line each. */

import type { Secrets } from '../crypto/secrets.js';
import { blkdebugDefinition } from '../filter/blkdebug/driver.js';
import { blklogwritesDefinition } from '../filter/blklogwrites.js';
import { blkverifyDefinition } from '../filter/blkverify.js';
import { compressDefinition } from '../filter/compress.js';
import { createCopyBeforeWriteDriver } from '../filter/copy-before-write.js';
import { createCopyOnReadDriver } from '../filter/copy-on-read.js';
import { preallocateDefinition } from '../filter/preallocate.js';
import { quorumDefinition } from '../filter/quorum/driver.js';
import { snapshotAccessDefinition } from '../filter/snapshot-access.js';
import { createThrottleDriver } from '../filter/throttle.js';
import type { BlockGraph } from '../graph.js';
import type { ThrottleGroups } from '../throttle/throttle-groups.js';
import { fileDriver, hostDeviceDriver } from './file/driver.js';
import { createLuksDriver } from './luks.js';
import { nbdDefinition } from './nbd.js';
import { nullAioDriver, nullCoDriver } from './null.js';
import { createQcow2Driver } from './qcow2/driver.js';
import { rawDriver } from './raw.js';

/**
 * @param groups where throttle nodes find the group that they name
 * @param secrets where encrypted images find the secret that they name
 */
export function registerDrivers(graph: BlockGraph, groups: ThrottleGroups, secrets: Secrets): void {
  const { drivers } = graph;
  drivers.register(fileDriver);
  drivers.register(hostDeviceDriver);
  drivers.register(rawDriver);
  drivers.register(createQcow2Driver(secrets));
  drivers.register(nullCoDriver);
  drivers.register(nullAioDriver);
  drivers.register(nbdDefinition);
  drivers.register(createLuksDriver(secrets));
  drivers.register(createThrottleDriver((name) => groups.find(name)));
  drivers.register(createCopyOnReadDriver((name) => graph.find(name)));
  drivers.register(createCopyBeforeWriteDriver((name) => graph.find(name)));
  drivers.register(snapshotAccessDefinition);
  drivers.register(preallocateDefinition);
  drivers.register(compressDefinition);
  drivers.register(blkdebugDefinition);
  drivers.register(blkverifyDefinition);
  drivers.register(blklogwritesDefinition);
  drivers.register(quorumDefinition);
}
