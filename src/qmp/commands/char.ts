// SPDX-License-Identifier: MIT
/** Commands for character devices. */
import {
  CHARDEV_ADD,
  CHARDEV_CHANGE,
  CHARDEV_REMOVE,
  ChardevBackendKind,
  QUERY_CHARDEV,
  QUERY_CHARDEV_BACKENDS,
} from '../../../protocol/qapi/char.js';
import { BlockError } from '../../base/errors.js';
import type { CommandRegistry } from '../registry.js';
import type { ChardevSet } from '../transport/chardev-set.js';

export function registerCharCommands(registry: CommandRegistry, chardevs: ChardevSet): void {
  registry.register(QUERY_CHARDEV, () => chardevs.infos());
  registry.register(QUERY_CHARDEV_BACKENDS, () =>
    ChardevBackendKind.values.map((name) => ({ name })),
  );
  registry.register(CHARDEV_ADD, async ({ id, backend }) => {
    try {
      await chardevs.add(id, backend);
    } catch (error) {
      if (!(error instanceof BlockError) || error.code === 'DF_EXISTS') throw error;
      const text = `Failed to add chardev '${id}'`;
      throw new BlockError(error.code, text, error.context, { cause: error });
    }
    return {};
  });
  registry.register(CHARDEV_CHANGE, async ({ id, backend }) => {
    await chardevs.change(id, backend);
    return {};
  });
  registry.register(CHARDEV_REMOVE, ({ id }) => chardevs.remove(id));
}
