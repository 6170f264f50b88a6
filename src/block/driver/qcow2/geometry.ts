// SPDX-License-Identifier: MIT
/** The numbers that follow from an image's header and never change while it is open. */
import {
  ENTRY_LENGTH,
  EXTENDED_ENTRY_LENGTH,
  SUBCLUSTERS,
} from '../../../../protocol/qcow2/entries.js';
import { QCOW2_INCOMPAT_EXTL2, type Qcow2Header } from '../../../../protocol/qcow2/header.js';
import { refcountMax, refcountsPerBlock } from '../../../../protocol/qcow2/refcounts.js';

/** All lengths in bytes. */
export interface Geometry {
  readonly version: number;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extendedL2: boolean;
  /** A cluster, or a 32nd of it with extended L2 entries: what can be allocated or zero alone. */
  readonly subclusterSize: number;
  readonly subclusters: number;
  readonly l2EntryLength: number;
  readonly l2Entries: number;
  /** Guest bytes that one L2 table maps. */
  readonly bytesPerL2: number;
  /** log2 of a count's width in bits. */
  readonly refcountOrder: number;
  readonly refcountMax: number;
  readonly refcountsPerBlock: number;
}

/** @param header checked */
export function geometryOf(header: Qcow2Header): Geometry {
  const { version, clusterBits, refcountOrder } = header;
  const clusterSize = 2 ** clusterBits;
  const extendedL2 = (header.incompatible & QCOW2_INCOMPAT_EXTL2) !== 0n;
  const l2EntryLength = extendedL2 ? EXTENDED_ENTRY_LENGTH : ENTRY_LENGTH;
  const subclusters = extendedL2 ? SUBCLUSTERS : 1;
  const l2Entries = clusterSize / l2EntryLength;
  return {
    version,
    clusterBits,
    clusterSize,
    extendedL2,
    subclusterSize: clusterSize / subclusters,
    subclusters,
    l2EntryLength,
    l2Entries,
    bytesPerL2: l2Entries * clusterSize,
    refcountOrder,
    refcountMax: refcountMax(refcountOrder),
    refcountsPerBlock: refcountsPerBlock(clusterSize, refcountOrder),
  };
}

/** As QEMU writes such numbers: none has a prefix but those above 0. */
export const hex = (value: number): string => (value === 0 ? '0' : `0x${value.toString(16)}`);
