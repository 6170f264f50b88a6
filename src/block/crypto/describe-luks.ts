// SPDX-License-Identifier: MIT
/** A volume as queries show it; nothing secret is in it. @see qapi QCryptoBlockInfoLUKS */
import { LUKS_SECTOR_SIZE, LUKS_SLOT_ENABLED } from '../../../protocol/luks/header.js';
import type { LuksDescription } from './luks-volume.js';

/** Fields in wire spelling. */
export function describeLuks({ header, spec, payloadOffset }: LuksDescription) {
  return {
    'cipher-alg': spec.algorithm,
    'cipher-mode': spec.mode,
    'ivgen-alg': spec.ivGenerator,
    ...(spec.ivGenerator === 'essiv' ? { 'ivgen-hash-alg': spec.ivHash } : {}),
    'hash-alg': spec.hash,
    'payload-offset': payloadOffset,
    'master-key-iters': header.digestIterations,
    uuid: header.uuid,
    slots: header.slots.map(({ state, iterations, stripes, keyOffsetSector }) => ({
      active: state === LUKS_SLOT_ENABLED,
      ...(state === LUKS_SLOT_ENABLED ? { iters: iterations, stripes } : {}),
      'key-offset': keyOffsetSector * LUKS_SECTOR_SIZE,
    })),
  };
}
