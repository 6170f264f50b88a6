// SPDX-License-Identifier: MIT
/**
 * What the NBD specification (proto.md, with its extension EXTENDED_HEADERS) asks of a server: each
 * MUST and SHOULD in our words, with the test that proves it. Rules for clients are left out.
 * Rules on TLS that bind a server which offers it name the test that shows that ours does not.
 */
import { OPTION_RULES } from './rules-of-options.js';
import { TRANSMISSION_RULES } from './rules-of-transmission.js';

export interface Requirement {
  /** Letters of the section, and a number. */
  readonly id: string;
  /** Title of the section of the specification. */
  readonly section: string;
  /** What the specification asks; after a NOT the rule says what must not be. */
  readonly level: 'MUST' | 'MUST NOT' | 'SHOULD' | 'SHOULD NOT';
  readonly rule: string;
  /** Exact name of a test in this folder. */
  readonly test: string;
}

/** Section of the specification by the letters of an identity. */
const SECTIONS: Readonly<Record<string, string>> = {
  CO: 'Conventions',
  PP: 'Protocol phases',
  NN: 'Newstyle negotiation',
  FN: 'Fixed newstyle negotiation',
  TS: 'Termination of the session during option haggling',
  TR: 'Transmission',
  OR: 'Ordering of messages and writes',
  SM: 'Simple reply message',
  SR: 'Structured reply chunk message',
  TT: 'Terminating the transmission phase',
  TL: 'TLS support',
  SZ: 'Size constraints',
  MQ: 'Metadata querying',
  HF: 'Handshake flags',
  TF: 'Transmission flags',
  OT: 'Option types',
  RT: 'Option reply types',
  CF: 'Command flags',
  RF: 'Structured reply flags',
  ST: 'Structured reply types',
  RD: 'NBD_CMD_READ',
  WR: 'NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH',
  DI: 'NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH',
  FL: 'NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH',
  TC: 'NBD_CMD_TRIM, NBD_CMD_CACHE',
  WZ: 'NBD_CMD_WRITE_ZEROES',
  BS: 'NBD_CMD_BLOCK_STATUS',
  EV: 'Error values',
  IO: 'Compatibility and interoperability',
  EH: 'Extension EXTENDED_HEADERS',
};

function parse(test: string, row: string): Requirement {
  const found = /^([A-Z]+)(\d+) ((?:MUST|SHOULD)(?: NOT)?): (.+)$/.exec(row);
  const [, letters = '', number, level, rule = ''] = found ?? [];
  const section = SECTIONS[letters];
  if (section === undefined) throw new Error(`not a rule of a known section: ${row}`);
  return { id: letters + number, section, level: level as Requirement['level'], rule, test };
}

/** Every requirement. */
export const REQUIREMENTS: readonly Requirement[] = Object.entries({
  ...OPTION_RULES,
  ...TRANSMISSION_RULES,
}).flatMap(([test, rows]) => rows.map((row) => parse(test, row)));
