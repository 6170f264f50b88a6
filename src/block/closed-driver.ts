// SPDX-License-Identifier: MIT
import { BlockError } from '../base/errors.js';
import { type BlockDriver, DEFAULT_LIMITS } from './block-driver.js';

/** Stands in before a node is open and after it is closed. */
export const CLOSED_DRIVER: BlockDriver = {
  name: 'closed',
  features: { fua: true, writeZeroes: false, discard: false, backing: false, multiConn: false },
  limits: DEFAULT_LIMITS,
  size: 0,
  filename: '',
  read: () => {
    throw new BlockError('DF_SHUTDOWN', 'the node is closed');
  },
  close: () => undefined,
};
