// SPDX-License-Identifier: MIT
import { describe, expect, test } from 'vitest';
import { CONTROL_COMMANDS, QUERY_VERSION } from '../../../protocol/qapi/control.js';
import { defineCommand } from '../../../protocol/qapi/define.js';
import { BlockError } from '../../../src/base/errors.js';
import { rootLog } from '../../../src/base/log.js';
import { dispatch, errorReply } from '../../../src/qmp/dispatch.js';
import { writeJson } from '../../../src/qmp/json-writer.js';
import { CommandRegistry } from '../../../src/qmp/registry.js';
import { VERSION } from './qmp-peer.js';

describe('the registry', () => {
  test('takes no command that the schema lacks, and none twice', () => {
    const registry = new CommandRegistry(CONTROL_COMMANDS);
    const stranger = defineCommand({ name: 'stranger', doc: '' });
    expect(() => registry.register(stranger, () => undefined)).toThrow('not in the schema');
    registry.register(QUERY_VERSION, () => VERSION);
    expect(() => registry.register(QUERY_VERSION, () => VERSION)).toThrow('handler already');
  });

  test('knows which commands have no handler', () => {
    const registry = new CommandRegistry(CONTROL_COMMANDS);
    registry.register(QUERY_VERSION, () => VERSION);
    expect(registry.missing()).toEqual(['qmp_capabilities', 'query-commands', 'quit']);
    expect(registry.definitions().map((d) => d.name)).toEqual(['query-version']);
  });
});

describe('a request', () => {
  const session = { isNegotiating: false, offered: [], negotiate: () => undefined };
  const registry = new CommandRegistry(CONTROL_COMMANDS);
  registry.register(QUERY_VERSION, () => VERSION);
  const options = { registry, session, oobEnabled: true, logger: rootLog() };

  test.each<[unknown, string, string]>([
    [5, 'GenericError', 'QMP input must be a JSON object'],
    [[], 'GenericError', 'QMP input must be a JSON object'],
    [{}, 'GenericError', "QMP input lacks member 'execute'"],
    [{ execute: 5 }, 'GenericError', "QMP input member 'execute' must be a string"],
    [
      { execute: 'a', arguments: [] },
      'GenericError',
      "QMP input member 'arguments' must be an object",
    ],
    [{ execute: 'a', x: 1 }, 'GenericError', "QMP input member 'x' is unexpected"],
    [
      { execute: 'a', 'exec-oob': 'b' },
      'GenericError',
      "QMP input member 'exec-oob' clashes with 'execute'",
    ],
    [{ execute: 'a' }, 'CommandNotFound', 'The command a has not been found'],
    [{ execute: 'toString' }, 'CommandNotFound', 'The command toString has not been found'],
    [
      { execute: 'query-version', arguments: { a: 1 } },
      'GenericError',
      "Parameter 'a' is unexpected",
    ],
  ])('%o is refused', async (request, errorClass, desc) => {
    expect(await dispatch(request as never, options)).toEqual({
      error: { class: errorClass, desc },
    });
  });
});

describe('errors', () => {
  test('have the class that their code stands for', () => {
    const reply = errorReply(new BlockError('DF_NODE_NOT_FOUND', 'no node'), rootLog());
    expect(reply).toEqual({ error: { class: 'DeviceNotFound', desc: 'no node' } });
  });
});

describe('JSON that is written', () => {
  test('is ASCII, exact, and without what is undefined', () => {
    const value = { a: [1, 2n ** 64n - 1n, -0, 1.5, null, true], b: undefined, c: {}, d: [] };
    expect(writeJson(value)).toBe(
      '{"a": [1, 18446744073709551615, 0, 1.5, null, true], "c": {}, "d": []}',
    );
    expect(writeJson('é"\\\n\u0001😀\ud800')).toBe(
      '"\\u00E9\\"\\\\\\n\\u0001\\uD83D\\uDE00\\uFFFD"',
    );
  });

  test('can be indented', () => {
    expect(writeJson({ a: [1, {}], b: [] }, { pretty: true })).toBe(
      '{\n    "a": [\n        1,\n        {}\n    ],\n    "b": []\n}',
    );
  });
});
