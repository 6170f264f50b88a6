// SPDX-License-Identifier: MIT
/** The options that every node has, whatever its driver. @see qapi BlockdevOptions */
import { BlockError } from '../base/errors.js';
import { isIdentifier } from '../base/identifier.js';
import { NODE_NAME_MAX } from '../base/limits.js';
import type { DriverKind, DriverOptions } from './block-driver.js';

export interface NodeOptions {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  readonly discard: 'ignore' | 'unmap';
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  readonly cache: { readonly direct: boolean; readonly noFlush: boolean };
  /** Everything as it was given, wire spelling, children included: for reopen and queries. */
  readonly given: DriverOptions;
}

/** What a child that is defined inline takes over when its own options say nothing. */
export interface InheritedOptions {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  readonly discard: 'ignore' | 'unmap';
  readonly cache: { readonly direct: boolean; readonly noFlush: boolean };
}

export const ROOT_DEFAULTS: InheritedOptions = {
  readOnly: false,
  autoReadOnly: false,
  forceShare: false,
  discard: 'ignore',
  cache: { direct: false, noFlush: false },
};

/**
 * Splits the base options off a validated BlockdevOptions object.
 * @throws BlockError DF_INVALID when two of them exclude each other
 */
export function parseNodeOptions(given: DriverOptions, inherited: InheritedOptions): NodeOptions {
  const cache = (given.cache ?? {}) as { direct?: boolean; 'no-flush'?: boolean };
  const options: NodeOptions = {
    readOnly: (given['read-only'] as boolean | undefined) ?? inherited.readOnly,
    autoReadOnly: (given['auto-read-only'] as boolean | undefined) ?? inherited.autoReadOnly,
    forceShare: (given['force-share'] as boolean | undefined) ?? inherited.forceShare,
    discard: (given.discard as 'ignore' | 'unmap' | undefined) ?? inherited.discard,
    detectZeroes: (given['detect-zeroes'] as 'off' | 'on' | 'unmap' | undefined) ?? 'off',
    cache: {
      direct: cache.direct ?? inherited.cache.direct,
      noFlush: cache['no-flush'] ?? inherited.cache.noFlush,
    },
    given,
  };
  if (options.forceShare && !options.readOnly) {
    throw new BlockError('DF_INVALID', 'force-share=on can only be used with read-only images');
  }
  if (options.detectZeroes === 'unmap' && options.discard !== 'unmap') {
    throw new BlockError(
      'DF_INVALID',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    );
  }
  return options;
}

/**
 * What a child defined inline inherits: a backing node is read-only; a format's file gets discards
 * and keeps the rest; a filter's child is as the filter.
 */
export function inheritedByChild(
  parent: NodeOptions,
  kind: DriverKind,
  role: string,
): InheritedOptions {
  const backing = role === 'backing';
  return {
    readOnly: backing ? true : parent.readOnly,
    autoReadOnly: backing ? false : parent.autoReadOnly,
    forceShare: parent.forceShare,
    discard: kind === 'filter' ? parent.discard : 'unmap',
    cache: parent.cache,
  };
}

/** @throws BlockError DF_INVALID: names start with a letter and have letters, digits, '-', '.', '_' */
export function checkNodeName(name: string): void {
  if (!isIdentifier(name)) {
    throw new BlockError('DF_INVALID', `Invalid node-name: '${name}'`);
  }
  if (name.length > NODE_NAME_MAX) {
    throw new BlockError('DF_INVALID', 'Node name too long');
  }
}
