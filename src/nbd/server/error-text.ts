// SPDX-License-Identifier: MIT
/** Longest text that is sent with an error, bytes; the specification allows 4096. */
const ERROR_TEXT_MAX = 1024;

/** A message for a client's people: UTF-8 without NUL, cut between characters when too long. */
export function errorText(message: string): Buffer {
  const bytes = Buffer.from(message.replaceAll('\0', '?'));
  if (bytes.byteLength <= ERROR_TEXT_MAX) return bytes;
  let end = ERROR_TEXT_MAX;
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}
