// SPDX-License-Identifier: MIT
/** Driver name → how to make one. Filled by driver/all.ts; the graph knows no driver by name. */
import { BlockError } from '../base/errors.js';
import type { DriverDefinition } from './block-driver.js';

export class DriverRegistry {
  readonly #definitions = new Map<string, DriverDefinition>();

  /** @throws when the name is taken: a bug */
  register(definition: DriverDefinition): void {
    if (this.#definitions.has(definition.name)) {
      throw new Error(`driver '${definition.name}' is registered twice`);
    }
    this.#definitions.set(definition.name, definition);
  }

  /** @throws BlockError DF_INVALID for a name that nobody registered */
  get(name: string): DriverDefinition {
    const definition = this.#definitions.get(name);
    if (definition === undefined) throw new BlockError('DF_INVALID', `Unknown driver '${name}'`);
    return definition;
  }

  get names(): string[] {
    return [...this.#definitions.keys()];
  }
}
