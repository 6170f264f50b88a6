// SPDX-License-Identifier: MIT
/** Small types that several parts of the schema share. @see QEMU's qapi/common.json */
import { enumeration } from './define.js';

export const IoOperationType = enumeration('IoOperationType', {
  doc: 'Directions of a request.',
  values: { read: 'data comes from the node', write: 'data goes to the node' },
});

export const OnOffAuto = enumeration('OnOffAuto', {
  doc: 'A choice that the program can make itself.',
  values: { auto: 'as the program finds best', on: 'yes', off: 'no' },
});
