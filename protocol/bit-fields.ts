// SPDX-License-Identifier: MIT
/** Names of numbers and of flag bits, derived from the tables of constants. */

type Table = Readonly<Record<string, number>>;

/** Text for logs from a table of values: `NBD_CMD_READ`, or `NBD_CMD_?(77)` for what it lacks. */
export function namesOf(table: Table, prefix: string): (value: number) => string {
  const names = new Map(Object.entries(table).map(([name, value]) => [value, name]));
  return (value) => names.get(value) ?? `${prefix}?(${value})`;
}

/** Text for logs from a table of single-bit flags: `NBD_CMD_FLAG_FUA|0x8000`; `0` when none is set. */
export function flagNamesOf(table: Table): (value: number) => string {
  const rows = Object.entries(table);
  return (value) => {
    const known = rows.filter(([, bit]) => (value & bit) !== 0);
    const rest = unknownBits(value, table);
    const names = known.map(([name]) => name);
    if (rest !== 0) names.push(`0x${rest.toString(16)}`);
    return names.length === 0 ? '0' : names.join('|');
  };
}

/** All bits of a table of flags. */
export function maskOf(table: Table): number {
  let mask = 0;
  for (const bit of Object.values(table)) mask |= bit;
  return mask >>> 0;
}

/** The bits of `value` that the table does not name. */
export function unknownBits(value: number, table: Table): number {
  return (value & ~maskOf(table)) >>> 0;
}
