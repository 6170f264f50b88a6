// SPDX-License-Identifier: MIT
/** Rules for the transmission phase, by the test that proves them: identity, level, and the rule. */
export const TRANSMISSION_RULES: Readonly<Record<string, readonly string[]>> = {
  'uses only simple replies when nothing else was negotiated': [
    'TR1 MUST: only simple replies without negotiation',
    'SM1 MUST: simple replies to all without structured ones',
    'SR1 MUST NOT: structured replies that nobody negotiated',
  ],
  'reads what is there, data and holes': ['RD3 MUST: simple replies carry length bytes of data'],
  'echoes every cookie as it came': ['TR2 MUST: a simple reply echoes the cookie, which is opaque'],
  'answers each of many requests in flight once': [
    'TR4 MUST: each request is answered, in any order',
  ],
  'sends no payload with a failed read, and goes on': [
    'RD5 MUST NOT: data after an error in a simple reply',
  ],
  'writes before it replies': ['WR2 MUST: write first, reply then'],
  'makes a write visible to all connections once it is flushed, as multi-conn says': [
    'TF6 MUST: multi-conn: flushed writes are seen by all connections',
  ],
  'errors every write to a read-only export with EPERM': [
    'TF3 MUST: writes to a READ_ONLY export fail',
    'WZ11 SHOULD: EPERM on a read-only export',
    'EV5 SHOULD: EPERM for writes and trims of a read-only export',
  ],
  'answers what reaches past the end with ENOSPC for writes and EINVAL for the rest': [
    'SZ13 SHOULD: EINVAL for what passes the end',
    'WZ10 SHOULD: ENOSPC past the end',
    'EV1 SHOULD: ENOSPC for writes past the end',
    'EV3 SHOULD: EINVAL for reads and trims past the end',
  ],
  'refuses what is not aligned to the block size it advertised with EINVAL': [
    'SZ12 SHOULD: EINVAL for what is not aligned to an advertised minimum',
    'EV4 SHOULD: EINVAL for reads and writes off the block size',
  ],
  'survives requests of length 0': [
    'RD2 SHOULD NOT: disconnect for length 0',
    'WR1 SHOULD NOT: disconnect for length 0',
    'TC1 SHOULD NOT: TRIM: disconnect for length 0',
    'WZ1 SHOULD NOT: disconnect for length 0',
  ],
  'takes FUA on every command': ['CF1 MUST: FUA is taken with every command'],
  'refuses unknown commands with EINVAL': ['EV8 SHOULD: EINVAL for unknown commands'],
  'refuses unknown command flags, and flags of other commands, with EINVAL': [
    'EV9 SHOULD: EINVAL for unknown flags',
    'EV10 SHOULD: EINVAL for flags that do not fit the command',
  ],
  'does not disconnect for a payload of 32 MiB, even where it has to refuse it': [
    'TT4 MUST NOT: disconnect for other reasons',
    'SZ10 SHOULD NOT: 32 MiB count as an attack',
  ],
  'does not disconnect for a range without payload that is larger than any payload': [
    'SZ11 SHOULD NOT: disconnect for long ranges without payload',
  ],
  'never answers an ordinary request with EOVERFLOW, ENOTSUP or ENOMEM': [
    'EV6 SHOULD NOT: EOVERFLOW but for DF and long ranges',
    'EV7 SHOULD NOT: ENOTSUP but for FAST_ZERO',
    'EV11 SHOULD NOT: ENOMEM',
  ],
  'refuses command flags of CACHE that it does not know': [
    'TC2 MUST NOT: CACHE changes what reads and writes do',
    'TC3 MUST: CACHE: unknown flags are rejected',
  ],
  'answers all requests in flight, then closes without a word, after DISC': [
    'TT1 MUST: close after DISC',
    'DI1 MUST: handle what is outstanding, then close',
    'IO5 MUST: simple replies, READ, WRITE, DISC',
  ],
  'zeroes with and without NO_HOLE, and then reads zeroes': [
    'CF3 MUST: NO_HOLE is supported with write zeroes',
    'WZ2 MUST: zero first, reply then',
    'WZ3 MUST: the range reads as zeroes',
    'WZ4 MUST: NO_HOLE provisions the range',
  ],
  'zeroes fast or fails with ENOTSUP and leaves the data alone': [
    'TF7 MUST: SEND_FAST_ZERO is set if the flag is supported',
    'CF5 MUST: FAST_ZERO that is not fast fails with ENOTSUP',
    'WZ7 MUST: FAST_ZERO is fast or ENOTSUP',
    'WZ8 SHOULD NOT: change data and answer ENOTSUP',
  ],
  'never fails zeroes without FAST_ZERO with ENOTSUP': ['WZ5 MUST NOT: ENOTSUP without FAST_ZERO'],
  'does not fail a vast fast zero with EOVERFLOW': ['WZ6 SHOULD NOT: EOVERFLOW with FAST_ZERO'],
  'finishes or fails with ESHUTDOWN what is in flight when it is shut down': [
    'TT2 SHOULD: serve what is in flight at a shutdown',
    'TT3 SHOULD: ESHUTDOWN is the error at a shutdown',
  ],
  'syncs the file before it answers FLUSH': [
    'OR1 MUST: writes answered before FLUSH are stable when it is answered',
    'FL1 MUST NOT: succeed before answered writes are stable',
  ],
  'syncs the file before it answers a write, zeroes or trim with FUA': [
    'OR2 MUST NOT: answer a command with FUA before its data is stable',
    'CF2 MUST NOT: answer FUA before the data is stable',
  ],
  'reports the failure of a write, and never success': ['WR3 MUST: an error is reported'],
  'reports the failure of a flush': ['FL2 MUST: a flush that failed is not a success'],
  'reports the failure of zeroing': ['WZ9 MUST: an error is reported'],
  'reports a failed read without data: in a simple reply or an error chunk': [
    'SR7 MUST NOT: end a reply while an error may follow',
    'RD4 SHOULD: an error is set when one occurs',
    'RD6 MUST: no success without all data',
    'RD12 MUST: an error chunk follows when an error is detected',
  ],
  'reports EDQUOT and EFBIG as ENOSPC': ['EV2 SHOULD: EDQUOT and EFBIG become ENOSPC'],
  'answers every READ with structured chunks, failed ones too': [
    'SR2 MUST: a payload comes in a structured reply',
    'SR3 MUST NOT: a simple reply to READ, even a failed one',
    'OT19 MUST: after its ACK reads get structured replies',
    'RD1 MUST: the form of the reply is what was negotiated',
  ],
  'marks the last chunk with DONE, no other, and sets no other flag': [
    'SR5 MUST: the chunk with DONE is the last',
    'RF1 MUST: DONE is clear while chunks follow, set on the last',
    'RF3 MUST NOT: other reply flags',
    'RD7 MUST: chunks, the last of them with DONE',
  ],
  'echoes the cookie in every chunk': ['TR3 MUST: each chunk echoes the cookie'],
  'gives a NONE chunk no payload and the DONE flag': [
    'RF2 MUST: DONE is set on NONE',
    'ST2 MUST: NONE has length 0 and DONE',
  ],
  'covers the whole request with content chunks inside it that do not overlap': [
    'ST4 MUST: content lies within the request',
    'ST5 MUST NOT: content overlaps',
    'RD8 MUST: a chunk describes at least a byte',
    'RD10 MUST NOT: overlap, or content outside the request',
    'RD11 MUST: content covers the request when there is no error',
  ],
  'sends the right data in its chunks': ['RD17 MUST: the data is that of the export'],
  'gives data chunks at least 9 bytes and hole chunks exactly 12, of a hole that is not empty': [
    'ST3 MUST: OFFSET_DATA has at least 9 bytes',
    'ST6 MUST: OFFSET_HOLE has 12 bytes',
    'ST7 MUST: a hole is not empty',
  ],
  'cuts chunks at multiples of 512 bytes, apart from the ends of the request': [
    'RD9 SHOULD: chunks are cut at multiples of 512',
  ],
  'sends few chunks: at most one for each change between data and hole, and one to end': [
    'SR6 SHOULD: few chunks',
  ],
  'sends one content chunk for DF, with zeroes in place of holes next to data': [
    'RD13 MUST: DF: at most one content chunk',
    'RD14 MUST: DF: zeroes of a hole beside data are sent as data',
  ],
  'takes DF for 65536 bytes, and refuses a larger one only with EOVERFLOW and no content': [
    'RD15 MUST NOT: DF: content together with EOVERFLOW',
    'RD16 MUST: DF is supported up to 65536 bytes',
  ],
  'sends no chunk with more data than the payload that it advertised': [
    'ST1 MUST NOT: a chunk above the advertised payload',
  ],
  'reports errors in well-formed error chunks, with a message': [
    'SR4 SHOULD: errors come in structured replies, with a text',
    'ST14 MUST: ERROR has at least 6 bytes and an error above 0',
    'ST15 SHOULD NOT: ERROR more than once in a reply',
    'ST16 MUST NOT: a message above 4096 bytes',
    'ST17 MUST: ERROR_OFFSET has at least 14 bytes and an error above 0',
  ],
  'places the offset of an error chunk inside its request': [
    'ST18 MUST: the offset of an error lies within the request',
  ],
  'answers BLOCK_STATUS with one structured chunk for each selected context': [
    'MQ1 MUST: one status chunk for each selected context',
    'MQ3 MUST: the status comes in a structured reply',
    'ST9 MUST: one status chunk for each context',
    'BS2 MUST: one structured chunk for each context',
  ],
  'gives a status chunk the ID and whole descriptors, none of them empty': [
    'ST8 MUST: BLOCK_STATUS has 4 bytes and a multiple of 8, not 0',
    'ST10 MUST: extents are not empty',
    'BS4 MUST: at least one descriptor, none empty',
  ],
  'sends one descriptor, within the request, for REQ_ONE': [
    'CF4 MUST NOT: more than one extent for REQ_ONE',
    'ST11 MUST: REQ_ONE: one descriptor, not longer than the request',
    'BS3 MUST NOT: REQ_ONE: longer than the request',
  ],
  'begins no descriptor past the end of the request': [
    'ST12 MUST: all extents but the last end inside the request',
  ],
  'describes no part twice with the same status in a row': [
    'BS5 SHOULD: neighbours differ in status',
  ],
  'tells data from holes, and sets no reserved status bit': [
    'MQ10 SHOULD: reserved bits of base:allocation are zero',
    'BS8 SHOULD: status that is easy to find is told',
  ],
  'cuts descriptors at multiples of 512 bytes and of the block size': [
    'BS6 SHOULD: lengths are multiples of 512',
    'BS7 SHOULD: lengths are multiples of the minimum block size',
  ],
  'sends at most 2^20 descriptors in a chunk': [
    'ST13 SHOULD NOT: more than 2^20 extents in a chunk',
  ],
  'refuses BLOCK_STATUS past the end with EINVAL in an error chunk': [
    'BS9 SHOULD: errors come in an error chunk',
    'BS10 SHOULD: EINVAL past the end',
  ],
  'survives a BLOCK_STATUS of length 0': ['BS1 SHOULD NOT: disconnect for length 0'],
  'never fails a write over what it calls allocated for want of space': [
    'MQ9 MUST NOT: ENOSPC where base:allocation told no hole',
  ],
  'refuses EXTENDED_HEADERS that carries data': [
    'EH1 SHOULD: the option with data gets ERR_INVALID',
  ],
  'takes EXTENDED_HEADERS with and without structured replies before it, and then GO': [
    'EH2 MUST: GO is supported too',
    'EH3 SHOULD: structured replies are no condition',
  ],
  'refuses STRUCTURED_REPLY after EXTENDED_HEADERS with ERR_EXT_HEADER_REQD': [
    'EH4 MUST: STRUCTURED_REPLY afterwards cannot downgrade',
  ],
  'never asks a client with compact headers for extended ones': [
    'EH18 SHOULD NOT: ERR_EXT_HEADER_REQD for GO',
  ],
  'uses only extended replies, which echo cookie and offset': [
    'EH5 MUST: all replies are extended',
    'EH6 MUST NOT: simple replies',
    'EH7 MUST: replies echo cookie and offset',
  ],
  'reads and writes with extended headers': [
    'EH21 MUST: reads and writes work as with compact headers',
  ],
  'carries out a WRITE without PAYLOAD_LEN whole, or refuses it with EINVAL': [
    'EH8 MUST: WRITE needs PAYLOAD_LEN; one without, an error of the client, does no harm',
  ],
  'consumes the payload of a command that takes none, refuses it with EINVAL, and goes on': [
    'EH10 SHOULD: a payload that is not wanted is consumed',
    'EH11 MUST: PAYLOAD_LEN gets EINVAL where no payload is known',
  ],
  'closes on a payload larger than it advertised': [
    'EH9 SHOULD: disconnect above the maximum payload',
  ],
  'takes ranges of more than 32 bits for commands without payload': [
    'EH12 MUST: lengths without payload have 64 bits',
  ],
  'reports the status of more than 4 GiB in one answer': [
    'EH20 SHOULD: extents may be longer than 32 bits',
  ],
  'sends wide status chunks of whole descriptors, counted right, with padding of zero': [
    'EH13 MUST: BLOCK_STATUS_EXT has 8 bytes and a multiple of 16, not 0',
    'EH15 MUST: the count, unless 0, agrees with the length',
    'EH16 MUST: wide extents are not empty, their padding is zero',
    'EH17 MUST: one chunk of either width for each context',
  ],
  'sends no wide status chunk to a client with compact headers': [
    'EH14 MUST NOT: BLOCK_STATUS_EXT without the extension',
  ],
  'ends an answer with DONE on its last extended chunk alone': ['EH19 MUST: DONE ends a reply'],
};
