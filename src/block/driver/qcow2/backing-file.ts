// SPDX-License-Identifier: MIT
/** Another backing file for an open image. */
import { QCOW2_EXT_BACKING_FORMAT } from '../../../../protocol/qcow2/extensions.js';
import { QCOW2_BACKING_NAME_MAX } from '../../../../protocol/qcow2/header.js';
import { BlockError } from '../../../base/errors.js';
import type { BackingFile } from '../../block-driver.js';
import type { HeaderState } from './header-state.js';

/**
 * Durable when done. @param backing undefined: the image has none from now on
 * @throws BlockError DF_INVALID when name or format are too long; nothing has changed then
 */
export function changeBackingFile(
  header: HeaderState,
  backing: BackingFile | undefined,
): Promise<void> {
  const name = backing?.filename;
  if (name !== undefined && Buffer.byteLength(name) > QCOW2_BACKING_NAME_MAX) {
    throw new BlockError(
      'DF_INVALID',
      `The backing file's name is longer than ${QCOW2_BACKING_NAME_MAX} bytes`,
    );
  }
  const others = header.content.extensions.filter(({ type }) => type !== QCOW2_EXT_BACKING_FORMAT);
  const format = backing?.format;
  const extensions =
    format === undefined
      ? others
      : [{ type: QCOW2_EXT_BACKING_FORMAT, data: Buffer.from(format, 'utf8') }, ...others];
  return header.rewrite({ extensions, backingName: name });
}
