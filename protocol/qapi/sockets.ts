// SPDX-License-Identifier: MIT
/** Addresses of sockets. @see QEMU's qapi/sockets.json and common.json */
import { bool, enumeration, optional, required, str, struct, union } from './define.js';

export const SocketAddressType = enumeration('SocketAddressType', {
  doc: 'Kinds of socket addresses.',
  values: {
    inet: 'a TCP address',
    unix: 'a UNIX socket',
    fd: 'a descriptor that the process inherited',
  },
});

export const InetSocketAddress = struct('InetSocketAddress', {
  doc: 'A TCP address.',
  members: {
    host: required(str, 'host name or address; empty to listen on all addresses'),
    port: required(str, 'port as a decimal number; 0 to listen on one that is free'),
    ipv4: optional(bool, 'whether IPv4 may be used', { default: 'both families where available' }),
    ipv6: optional(bool, 'whether IPv6 may be used', { default: 'both families where available' }),
    'keep-alive': optional(bool, 'send TCP keep-alives (connecting sockets)', { default: 'false' }),
  },
});

export const UnixSocketAddress = struct('UnixSocketAddress', {
  doc: 'A UNIX socket.',
  members: { path: required(str, 'path of the socket file') },
});

export const FdSocketAddress = struct('FdSocketAddress', {
  doc: 'A descriptor that the process inherited.',
  members: { str: required(str, 'number of the descriptor') },
});

export const SocketAddress = union('SocketAddress', {
  doc: 'The address of a socket.',
  members: { type: required(SocketAddressType, 'kind of address') },
  discriminator: 'type',
  branches: { inet: InetSocketAddress, unix: UnixSocketAddress, fd: FdSocketAddress },
});

const NbdServerAddressType = enumeration('NbdServerAddressType', {
  doc: 'Kinds of addresses at which an NBD client finds its server.',
  values: {
    inet: 'a TCP address',
    unix: 'a UNIX socket',
    fd: 'a descriptor that the process inherited',
    websocket: 'a WebSocket (ours, not in QEMU)',
  },
});

const WebSocketAddress = struct('WebSocketAddress', {
  doc: 'A server that speaks NBD in binary frames of WebSocket.',
  members: { url: required(str, 'ws://HOST[:PORT][/PATH][?QUERY]; it does not name the export') },
});

export const NbdServerAddress = union('NbdServerAddress', {
  doc: 'Where an NBD server is.',
  members: { type: required(NbdServerAddressType, 'kind of address') },
  discriminator: 'type',
  branches: {
    inet: InetSocketAddress,
    unix: UnixSocketAddress,
    fd: FdSocketAddress,
    websocket: WebSocketAddress,
  },
});

const InetSocketAddressWrapper = struct('InetSocketAddressWrapper', {
  doc: 'A TCP address.',
  members: { data: required(InetSocketAddress, 'the address') },
});
const UnixSocketAddressWrapper = struct('UnixSocketAddressWrapper', {
  doc: 'A UNIX socket.',
  members: { data: required(UnixSocketAddress, 'the address') },
});
const StringWrapper = struct('StringWrapper', {
  doc: 'A descriptor.',
  members: { data: required(FdSocketAddress, 'the descriptor') },
});

export const SocketAddressLegacy = union('SocketAddressLegacy', {
  doc: 'The address of a socket, in the older form with `data`.',
  members: { type: required(SocketAddressType, 'kind of address') },
  discriminator: 'type',
  branches: {
    inet: InetSocketAddressWrapper,
    unix: UnixSocketAddressWrapper,
    fd: StringWrapper,
  },
});
