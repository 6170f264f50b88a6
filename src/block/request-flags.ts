// SPDX-License-Identifier: MIT
/** What a request asks for besides its range; a bit set, which travels with every request and costs nothing. */

/** The data is on stable storage before the request completes. */
export const REQ_FUA = 1;
/** Write zeroes only: the range may become a hole. */
export const REQ_MAY_UNMAP = 2;
/** Write zeroes only: fail with DF_NOT_SUPPORTED rather than be slower than needed (fast zero). */
export const REQ_NO_FALLBACK = 4;
/** The write does not change what a reader sees (needs `write-unchanged` only). */
export const REQ_WRITE_UNCHANGED = 8;
/** Read only: bring the data close (NBD_CMD_CACHE, copy-on-read); its content is not wanted. */
export const REQ_PREFETCH = 16;
/** Write only: store whole units compressed. See `compressedUnit` for who can, and what is a unit. */
export const REQ_WRITE_COMPRESSED = 32;
/** `writeFrom` only: when the request fails a peer may still write what lies there later: newer content. */
export const REQ_LEND = 64;
/** As REQ_LEND, but only if a lost peer fails the request at once, and then nobody uses the target. */
export const REQ_LEND_ONCE = 128;
/** `writeFrom` only: the system may copy from file to file, zeroes too, wherever it is able to. */
export const REQ_OFFLOAD = 256;
export type RequestFlags = number;
