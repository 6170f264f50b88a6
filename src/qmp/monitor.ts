// SPDX-License-Identifier: MIT
/** A monitor: QMP on a character device, for one client after the other. */

import type { VersionInfo } from '../../protocol/qapi/control.js';
import type { Output } from '../../protocol/qapi/types.js';
import type { Logger } from '../base/log.js';
import type { Channel } from './channel.js';
import type { Chardev } from './chardev.js';
import type { EventHub } from './events.js';
import type { CommandRegistry } from './registry.js';
import { CAPABILITIES, MonitorSession } from './session.js';

export interface MonitorOptions {
  readonly chardev: Chardev;
  readonly registry: CommandRegistry;
  readonly events: EventHub;
  readonly version: Output<typeof VersionInfo>;
  readonly logger: Logger;
  /** Indent what is sent. */
  readonly pretty?: boolean;
}

export class Monitor {
  readonly #options: MonitorOptions;
  readonly #unsubscribe: () => void;
  #session: MonitorSession | undefined;

  /**
   * Puts a monitor on a character device.
   *
   * @throws {BlockError} `DF_IN_USE`: the device has a user
   */
  constructor(options: MonitorOptions) {
    this.#options = options;
    options.chardev.attach({
      opened: (channel) => this.#opened(channel),
      finish: async () => this.#session?.finish(),
    });
    this.#unsubscribe = options.events.subscribe((event) => this.#session?.event(event));
  }

  /** Takes no more commands; events still go out, until `close`. */
  stop(): void {
    this.#session?.stop();
  }

  /** Lets go of the device, which is closed by its owner. */
  close(): void {
    this.#unsubscribe();
    this.#session?.stop();
    this.#options.chardev.detach();
  }

  #opened(channel: Channel): void {
    const { chardev, registry, version, pretty = false } = this.#options;
    const logger = this.#options.logger.child({ monitor: chardev.id });
    logger.debug({ event: 'qmp.connect', peer: channel.peer }, 'client connected');
    const session = new MonitorSession(channel, {
      registry,
      pretty,
      logger,
      greeting: { QMP: { version, capabilities: CAPABILITIES } },
      logOutput: (text) => chardev.logOutput(text),
      ended: () => {
        if (this.#session === session) this.#session = undefined;
        logger.debug({ event: 'qmp.disconnect', peer: channel.peer }, 'client gone');
      },
    });
    this.#session = session;
    session.start();
  }
}
