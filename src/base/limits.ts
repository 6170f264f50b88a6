// SPDX-License-Identifier: MIT
/** Every queue, buffer, depth, timeout and retry count, named, with its unit and its reason. */

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** Largest size of a node, bytes: what a JavaScript number counts exactly, less slack for rounding up. */
export const NODE_SIZE_MAX = Number.MAX_SAFE_INTEGER - 2 * GIB;
/** QEMU's limit on node names, characters. */
export const NODE_NAME_MAX = 31;
/** Depth of the block graph below one node; deeper graphs are refused before recursion hurts. */
export const GRAPH_DEPTH_MAX = 200;
/** Largest single request that travels through the graph, bytes; drivers may ask for less. */
export const REQUEST_LENGTH_MAX = 64 * MIB;
/** Length of the zero buffer that stands in where a driver has no write-zeroes, bytes. */
export const ZERO_BUFFER_LENGTH = 1 * MIB;

/** Largest payload of one NBD READ or WRITE that we accept, bytes; QEMU's and nbdkit's value too. */
export const NBD_PAYLOAD_MAX = 32 * MIB;
/** Longest string in NBD option negotiation, bytes. @see proto.md "Values": strings up to 4096 */
export const NBD_STRING_MAX = 4096;
/** NBD clients that one server serves at a time, unless `max-connections` says otherwise. */
export const NBD_CONNECTIONS_DEFAULT = 100;
/** Time for a client to finish the option phase, seconds, unless `handshake-max-seconds` says otherwise. */
export const NBD_HANDSHAKE_SECONDS_DEFAULT = 10;
/** Requests of one connection that may wait at a time; past it the socket is not read. */
export const NBD_REQUESTS_IN_FLIGHT_MAX = 256;
/** Payload bytes of one connection's requests in flight, past it the socket is not read. */
export const NBD_BYTES_IN_FLIGHT_MAX = 64 * MIB;
/** Reply bytes of one connection that the client has not taken yet, past it the socket is not read. */
export const NBD_UNSENT_BYTES_MAX = 16 * MIB;
/** Payload and reply bytes of all connections together; the share that a flood can take of memory. */
export const NBD_BYTES_TOTAL_MAX = 160 * MIB;

/** One QMP message, bytes; QEMU's limit is 64 MiB, real ones stay below some KiB. */
export const QMP_MESSAGE_MAX = 64 * MIB;
/** Nesting of one QMP message; QEMU's MAX_NESTING. */
export const QMP_NESTING_MAX = 1024;
/** Tokens in one QMP message; QEMU's MAX_TOKEN_COUNT is 2 << 20. */
export const QMP_TOKENS_MAX = 2 << 20;

/** Log text that waits for a slow reader of our stderr, bytes; past it lines are dropped. */
export const LOG_BUFFER_MAX = 4 * MIB;
/** Text by which a daemon in the background tells why it could not start, bytes: some lines. */
export const DAEMONIZE_REPORT_MAX = 16 * KIB;
