// SPDX-License-Identifier: MIT
/** Rules for the option phase, by the test that proves them: identity, level, and the rule. */
export const OPTION_RULES: Readonly<Record<string, readonly string[]>> = {
  'greets with the newstyle magic numbers only': [
    'NN1 SHOULD: oldstyle is refused on a newstyle port',
  ],
  'offers fixed newstyle and NO_ZEROES, and no other handshake flag': [
    'HF1 MUST: FIXED_NEWSTYLE is set',
    'HF3 MUST NOT: other handshake flags',
    'OT2 MUST: a server with further options has fixed newstyle',
  ],
  'closes the connection on client flags that it did not offer': [
    'NN2 MUST: close when client flags are not recognized',
    'HF5 MUST: drop a client that sets an unknown flag',
  ],
  'leaves out the 124 zeroes when the client asked for that': [
    'HF2 MUST NOT: 124 zeroes after NO_ZEROES on both sides',
    'IO6 SHOULD: EXPORT_NAME for older clients',
  ],
  'sends the 124 zeroes when the client did not refuse them': [
    'HF4 SHOULD NOT: behave differently unless the client agreed',
  ],
  'ends the session when EXPORT_NAME names no export': [
    'NN3 MUST: end the session when EXPORT_NAME is not allowed',
    'TS1 MUST: a hard disconnect where no error can be sent',
    'OT1 MUST: EXPORT_NAME of no export ends the session',
  ],
  'sends no zeroes after GO, whatever the client flags': [
    'OT17 MUST NOT: padding after the ACK of GO',
  ],
  'repeats the option in every reply to it': [
    'FN1 MUST: replies have the magic and repeat the option',
  ],
  'answers an unknown option with ERR_UNSUP and parses the next one': [
    'IO2 MUST: ERR_UNSUP for unknown options',
    'IO3 MUST NOT: lose the next message after an unknown one',
  ],
  'keeps the session after an option that it had to refuse': [
    'TS2 MUST NOT: a hard disconnect without a cause in the section',
    'TS3 MUST: an unwelcome client gets errors for its options',
  ],
  'acknowledges ABORT, with data or without, and closes': [
    'OT4 MUST: ABORT gets ACK',
    'OT5 SHOULD: data of ABORT is ignored',
  ],
  'is not disturbed by a client that sends ABORT and leaves at once': [
    'OT6 SHOULD: a client may leave without waiting for the ACK of ABORT',
  ],
  'speaks to a client that did not set fixed newstyle': [
    'OT3 MUST: EXPORT_NAME is all that nonfixed clients have',
  ],
  'answers options during its shutdown with ERR_SHUTDOWN, if at all': [
    'TS4 SHOULD: ERR_SHUTDOWN for options during shutdown',
  ],
  'disables the Nagle algorithm on its TCP connections': [
    'PP1 SHOULD: TCP sockets have TCP_NODELAY',
  ],
  'refuses STARTTLS while TLS is off, as policy or as unsupported': [
    'TL1 MUST: one of the three modes',
    'TL2 MUST: one mode for the life of a connection',
    'TL4 MUST: NOTLS: STARTTLS gets ERR_POLICY or ERR_UNSUP',
    'TL6 MUST: FORCEDTLS and SELECTIVETLS: STARTTLS gets ACK, and all is encrypted then',
    'TL9 MUST: FORCEDTLS and SELECTIVETLS: a second STARTTLS gets ERR_INVALID',
    'TL10 MUST: TLS 1.2 at least, where TLS is supported',
    'OT9 MUST NOT: keep negotiated state over STARTTLS',
  ],
  'refuses STARTTLS that carries data': ['OT8 MUST: STARTTLS gets ACK or a permitted error'],
  'refuses STARTTLS of a client that did not set fixed newstyle': [
    'TL3 MUST: NOTLS without fixed newstyle on both sides',
  ],
  'never asks for TLS while TLS is off': [
    'TL5 MUST NOT: NOTLS: ERR_TLS_REQD',
    'TL7 MUST: FORCEDTLS: other options get ERR_TLS_REQD before TLS',
    'TL8 MUST: SELECTIVETLS: a TLS-only export gets ERR_TLS_REQD',
  ],
  'lists every export and then acknowledges': [
    'FN2 MUST: one final reply ends the answer to an option',
    'IO4 MUST: ABORT and LIST',
  ],
  'lists names no longer than their reply, and the description behind them': [
    'RT2 MUST: the name in REP_SERVER fits into it',
  ],
  'refuses LIST that carries data': ['OT7 SHOULD: LIST with data gets ERR_INVALID'],
  'sends no data with ACK': ['RT1 MUST: ACK has no data'],
  'sends INFO_EXPORT of 12 bytes before it acknowledges INFO or GO': [
    'OT12 MUST: at least INFO_EXPORT comes before ACK',
    'RT3 MUST: INFO_EXPORT comes before ACK',
    'RT5 MUST: INFO_EXPORT has 12 bytes',
    'IO1 MUST: INFO and GO with INFO_EXPORT',
  ],
  'answers INFO and GO for an unknown export with ERR_UNKNOWN and no information': [
    'OT13 SHOULD NOT: information on an export that does not exist',
  ],
  'ignores information requests that it does not understand': [
    'OT11 MUST: unknown information requests are ignored',
  ],
  'sends each kind of information once': ['RT4 SHOULD: each kind of information comes once'],
  'sends the information items in the layout of the specification': [
    'RT6 MUST: INFO_NAME and INFO_DESCRIPTION have at least 2 bytes',
    'RT8 MUST: INFO_BLOCK_SIZE has 14 bytes',
  ],
  'tells GO the same as the INFO before it': ['OT16 MUST: GO tells the same as the INFO before it'],
  'refuses INFO and GO whose lengths contradict each other': [
    'OT10 MUST: a name is no longer than the data of INFO and GO',
  ],
  'refuses a name longer than 4096 bytes and goes on': [
    'CO3 MUST: a longer string is an error of the client',
  ],
  'keeps every string below 4096 bytes and without NUL': [
    'CO1 MUST NOT: a string holds a NUL',
    'CO2 MUST: a string has at most 4096 bytes',
  ],
  'refuses STRUCTURED_REPLY that carries data': [
    'OT18 SHOULD: STRUCTURED_REPLY with data gets ERR_INVALID',
  ],
  'sets HAS_FLAGS, and flags only of what it supports': [
    'TF1 MUST NOT: flags of features that are not supported',
    'TF2 MUST: HAS_FLAGS is set',
    'TF8 MUST: no SEND_FAST_ZERO without SEND_WRITE_ZEROES',
  ],
  'supports every command whose flag it sets': ['TF9 MUST: a command works whose flag is set'],
  'sets SEND_DF exactly when structured replies were negotiated': [
    'TF4 MUST: SEND_DF is set if DF is supported',
    'TF5 MUST: SEND_DF is clear without structured replies',
    'OT20 SHOULD NOT: extensions with payload before structured replies',
  ],
  'advertises block sizes within the limits of the specification': [
    'SZ5 MUST: the minimum is a power of 2, at most 65536',
    'SZ6 SHOULD: the size is a multiple of the minimum',
    'SZ7 MUST: the preferred size is a power of 2, at least minimum and 512',
    'SZ8 MUST: the maximum is at least the preferred size',
    'SZ9 SHOULD: the maximum is at least 1 MiB',
  ],
  'tells a client that asks of a block size that is not the default': [
    'SZ1 MUST: sizes other than the default are advertised',
    'OT14 MUST NOT: ERR_BLOCK_SIZE_REQD for clients that asked for sizes',
    'RT7 MUST: INFO_BLOCK_SIZE comes if asked for and not the default',
  ],
  'leaves data alone that a client unaware of the block size writes around': [
    'SZ4 MUST: requests outside the constraints do no harm',
  ],
  'takes clients that ask for no block size, with single bytes and 32 MiB payloads': [
    'SZ2 SHOULD: defaults: 1 byte, 4096, at least 32 MiB',
    'SZ3 SHOULD NOT: refuse clients that ask for no sizes',
    'OT15 SHOULD NOT: ERR_BLOCK_SIZE_REQD with default sizes',
    'IO7 SHOULD NOT: require block sizes of clients',
  ],
  'lists all contexts for no query, each as namespace, colon and leaf in valid UTF-8': [
    'MQ4 MUST: a context is namespace, colon, leaf',
    'OT25 MUST: no query lists every context',
    'OT26 SHOULD NOT: ERR_TOO_BIG for no query',
    'OT28 MUST: listed names begin with their namespace',
    'RT9 MUST: names of contexts are UTF-8',
  ],
  'sets the ID of a listed context to zero': ['OT29 SHOULD: the ID of a listed context is zero'],
  'lists what a query names, and everything of base: for its wildcard': [
    'MQ7 MUST: LIST takes `base:` as a wildcard',
    'OT24 MUST: a listing is contexts, then ACK or an error',
    'OT27 MUST: queries list what matches and can be selected',
  ],
  'sends nothing but ACK when no query finds a context': [
    'OT23 MUST: a listing of nothing is one ACK',
  ],
  'ignores queries of unknown namespaces and unknown leaves of base:': [
    'MQ8 MUST: unknown leaves of base: are ignored',
    'OT22 MUST: queries of unknown namespaces are ignored',
  ],
  'selects nothing for the wildcard base: or an empty leaf': [
    'MQ5 SHOULD NOT: an empty leaf selects',
    'MQ6 MUST: SET ignores `base:`',
  ],
  'selects nothing for zero queries': ['OT31 MUST: no query selects nothing'],
  'gives every selected context an ID of its own, once': [
    'OT32 MUST: each selected context comes once with its own ID',
  ],
  'replaces the selection by the last SET_META_CONTEXT, even by one that fails': [
    'OT33 MUST: each SET replaces what was selected',
  ],
  'fails malformed queries with ERR_INVALID and goes on': [
    'OT21 MUST: malformed context queries get ERR_INVALID',
  ],
  'fails more queries than its data can hold': [
    'OT35 MUST: a count of queries that contradicts the data is an error',
  ],
  'takes many queries, or fails them with ERR_TOO_BIG': [
    'OT34 MUST: too many queries get ERR_TOO_BIG, or are served',
  ],
  'refuses SET_META_CONTEXT before structured replies with ERR_INVALID': [
    'OT30 SHOULD: SET before structured replies gets ERR_INVALID',
  ],
  'refuses BLOCK_STATUS with EINVAL when no context was selected for this export': [
    'MQ2 SHOULD: EINVAL for BLOCK_STATUS without a context',
  ],
};
