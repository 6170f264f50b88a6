// SPDX-License-Identifier: MIT
import { expect, test } from 'vitest';
import {
  formatNbdFilename,
  type NbdTarget,
  NbdUriError,
  parseNbdTarget,
} from '../../../../protocol/nbd/uri.js';

const inet = (host: string, port: number, exportName = '', tls = false): NbdTarget => ({
  address: { type: 'inet', host, port },
  exportName,
  tls,
});
const unix = (path: string, exportName = '', tls = false): NbdTarget => ({
  address: { type: 'unix', path },
  exportName,
  tls,
});
const webSocket = (url: string, exportName = '', tls = false): NbdTarget => ({
  address: { type: 'websocket', url },
  exportName,
  tls,
});

test.each([
  ['nbd://example.com', inet('example.com', 10809)],
  ['nbd://example.com/', inet('example.com', 10809)],
  ['nbd://example.com:1234/disk', inet('example.com', 1234, 'disk')],
  ['NBD+TCP://h:1/a/b/../c', inet('h', 1, 'a/b/../c')],
  ['nbd://h//absolute', inet('h', 10809, '/absolute')],
  ['nbd://user@h/a%20b%2Fc', inet('h', 10809, 'a b/c')],
  ['nbd://[::1]:5/x', inet('::1', 5, 'x')],
  ['nbds://h/x', inet('h', 10809, 'x', true)],
  ['nbd+unix:///x?socket=/run/a.sock', unix('/run/a.sock', 'x')],
  ['nbd+unix://?socket=/run/a%3Fb', unix('/run/a?b')],
  ['nbds+unix:///x?socket=s', unix('s', 'x', true)],
  ['nbd:h:10809', inet('h', 10809)],
  ['nbd:127.0.0.1:1:exportname=a:b=c', inet('127.0.0.1', 1, 'a:b=c')],
  ['nbd:[::1]:1:exportname=x', inet('::1', 1, 'x')],
  ['nbd:unix:/run/a.sock', unix('/run/a.sock')],
  ['nbd:unix:/run/a:b.sock:exportname=x', unix('/run/a:b.sock', 'x')],
  ['ws://h:80/nbd/0', webSocket('ws://h:80/nbd/0', 'nbd/0')],
  ['ws://h', webSocket('ws://h/')],
  ['ws://h/p?a=1&export=disk', webSocket('ws://h/p?a=1', 'disk')],
  ['wss://h/p', webSocket('wss://h/p', 'p', true)],
])('%s is understood', (text, target) => {
  expect(parseNbdTarget(text)).toEqual(target);
});

test.each([
  ['', /starts with 'nbd:'/],
  ['disk.img', /starts with 'nbd:'/],
  ['http://h/x', /'http' is no scheme/],
  ['nbd://', /no host and port/],
  ['nbd://h:0/', /port 0/],
  ['nbd://h:65536/', /port 65536/],
  ['nbd://h:1x/', /no host and port/],
  ['nbd://h/a%ZZ', /percent-encoded/],
  ['nbd://h/x?socket=s', /unknown parameter 'socket'/],
  ['nbd://h/x#y', /no fragment/],
  ['nbd+unix:///x', /'socket' is missing/],
  ['nbd+unix://h/x?socket=s', /has no host/],
  ['nbd+unix:///x?socket=s&socket=t', /twice/],
  ['nbd+unix:///x?socket=s&readonly=1', /unknown parameter 'readonly'/],
  ['nbd:h', /port is missing/],
  ['nbd:unix:', /path is missing/],
  ['nbd:h:1\0', /NUL/],
])('%j is refused', (text, reason) => {
  expect(() => parseNbdTarget(text)).toThrow(NbdUriError);
  expect(() => parseNbdTarget(text)).toThrow(reason);
});

test('writes file names as QEMU does', () => {
  const host = { type: 'inet', host: 'h', port: 1 } as const;
  const path = { type: 'unix', path: '/s' } as const;
  expect(formatNbdFilename(host, '')).toBe('nbd://h:1');
  expect(formatNbdFilename(host, 'x')).toBe('nbd://h:1/x');
  expect(formatNbdFilename(path, '')).toBe('nbd+unix://?socket=/s');
  expect(formatNbdFilename(path, 'x')).toBe('nbd+unix:///x?socket=/s');
  expect(formatNbdFilename({ ...host, family: 4 }, 'x')).toBe(undefined);
  expect(formatNbdFilename({ type: 'fd' }, 'x')).toBe(undefined);
});

test.each([
  ['ws://h:80/', '', 'ws://h:80/'],
  ['ws://h:80/a%20b', 'a b', 'ws://h:80/a%20b'],
  ['ws://h:80/', 'a&b', 'ws://h:80/?export=a%26b'],
  ['ws://h:80/nbd', '', 'ws://h:80/nbd?export='],
  ['wss://h/p?t=1', 'disk', 'wss://h/p?t=1&export=disk'],
])('the file name of %s with export %j reads back as the same', (url, exportName, name) => {
  expect(formatNbdFilename({ type: 'websocket', url }, exportName)).toBe(name);
  expect(parseNbdTarget(name)).toMatchObject({ address: { type: 'websocket', url }, exportName });
});
