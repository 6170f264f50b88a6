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
/**
 * Reply bytes of one connection that the client has not taken yet, past it the socket is not read. Two
 * large replies keep a socket busy; more buffers only push each other out of the processor's caches.
 */
export const NBD_UNSENT_BYTES_MAX = 2 * MIB;
/** Payload and reply bytes of all connections together; the share that a flood can take of memory. */
export const NBD_BYTES_TOTAL_MAX = 160 * MIB;

/** One QMP message, bytes; QEMU's limit is 64 MiB, real ones stay below some KiB. It is answered in one go. */
export const QMP_MESSAGE_MAX = 1 * MIB;
/** Nesting of one QMP message; QEMU's MAX_NESTING. */
export const QMP_NESTING_MAX = 1024;
/** Tokens in one QMP message, each some 100 bytes of memory; QEMU's MAX_TOKEN_COUNT is 2 << 20. */
export const QMP_TOKENS_MAX = 32 * KIB;
/** Bytes of one QMP client that are parsed in a row before others have their turn. */
export const QMP_TURN_BYTES = 8 * KIB;
/** One reply to our own QMP client, which asked for it, bytes and tokens: a graph of thousands of nodes. */
export const QMP_REPLY_MAX = 64 * MIB;
export const QMP_REPLY_TOKENS_MAX = 2 << 20;

/** Log text that waits for a slow reader of our stderr, bytes; past it lines are dropped. */
export const LOG_BUFFER_MAX = 4 * MIB;
/** Time for the last lines of the log to be written at the end of the process, milliseconds. */
export const LOG_FLUSH_MS = 1000;
/** Log lines kept back while the daemon starts; with more it is no silent start any more. */
export const LOG_HELD_LINES_MAX = 1_000;
/** Text by which a daemon in the background tells why it could not start, bytes: some lines. */
export const DAEMONIZE_REPORT_MAX = 16 * KIB;
/** Times that a PID file is opened anew because its owner removed it meanwhile. */
export const PIDFILE_RACE_TRIES = 100;
/** Sockets that a service manager may pass at start. */
export const ACTIVATION_FDS_MAX = 1024;

/** Longest read that is tried on the event loop, bytes; a longer one would hold it up by copying alone. */
export const FILE_READ_NOW_MAX = 1 * MIB;
/** Shorter reads are copied, bytes: two copies cost less than the calls that spare them. */
export const NBD_SEND_FILE_MIN = 64 * KIB;
/** Distance of the places in which it is looked whether a file's pages are read, bytes: one read-ahead. */
export const FILE_SEND_PEEK_STEP = 128 * KIB;
/** A job looks for zeroes in pieces of this, lent or not, bytes. */
export const FILE_LEND_ZERO_UNIT = 256 * KIB;
/** How often, milliseconds, and how many times a drain looks whether clients have read lent pages. */
export const FILE_LENT_CHECK_MS = 1;
export const FILE_LENT_CHECKS_MAX = 1000;
/** Most that one call copies from file to file, bytes: a job that is cancelled waits for it. */
export const FILE_COPY_STEP = 16 * MIB;
/** Longest write that goes into the page cache on the event loop, bytes. */
export const FILE_WRITE_NOW_MAX = 1 * MIB;
/**
 * Calls that go to the thread pool at once after one that would have waited, or did: at first, and
 * at most where that happens again and again.
 */
export const FILE_POOL_RUN_FIRST = 2;
export const FILE_POOL_RUN = 32;
/** Steps of a long write where large ones take long, bytes: what the kernel has memory at hand for. */
export const FILE_WRITE_STEP = 64 * KIB;
/** A write that takes longer, milliseconds, lets those after it go in steps: 1 MiB at hand takes 0.1 to 0.3. */
export const FILE_WRITE_WHOLE_SLOW_MS = 0.4;
/** A write that held up the event loop for longer, milliseconds, sends those after it to the pool. */
export const FILE_WRITE_SLOW_MS = 2;
/** The same for zeroing, discarding and looking for holes, which wait for the disk in short steps. */
export const FILE_METADATA_SLOW_MS = 0.5;
/** Longest range that is zeroed or discarded on the event loop, bytes. */
export const FILE_ZERO_NOW_MAX = 4 * MIB;

/** Commands of one QMP session that wait while another runs, when `oob` is on; QEMU's QMP_REQ_QUEUE_LEN_MAX. */
export const QMP_QUEUE_MAX = 8;
/** Out-of-band commands of one QMP session that run at a time. */
export const QMP_OOB_RUNNING_MAX = 8;
/** Bytes that a QMP client has not taken yet, past which its next command is not read. */
export const QMP_UNSENT_PAUSE = 1 * MIB;
/** Bytes that a QMP client has not taken yet, past which the next event ends its session. */
export const QMP_UNSENT_MAX = 16 * MIB;
/** Time for the commands of a QMP client that has ended its side to complete, ms. */
export const QMP_HALF_CLOSED_MS = 1000;
/** A command that cancels a job replies after this time though the job has not ended, milliseconds. */
export const JOB_CANCEL_REPLY_MS = 1000;
/** Clients that wait for a character device to become free; the next is turned away. */
export const CHARDEV_WAITING_MAX = 16;
/** Time to open a connection to a socket, ms. */
export const CHARDEV_CONNECT_MS = 30_000;
/** Time for a WebSocket client to finish its HTTP request, ms. */
export const WEBSOCKET_UPGRADE_MS = 10_000;
/** Largest WebSocket message on a character device, bytes. */
export const CHARDEV_WEBSOCKET_MESSAGE_MAX = 1 * MIB;

/** Idle time after which an NBD client asks whether its server is still there, milliseconds. */
export const NBD_KEEPALIVE_IDLE_MS = 10_000;
/** Largest WebSocket frame that an NBD client takes, bytes: one payload and its heads fit. */
export const NBD_WEBSOCKET_FRAME_MAX = NBD_PAYLOAD_MAX + 64 * KIB;
/** Longest path of a UNIX socket, bytes; what fits into sockaddr_un with its closing zero. */
export const UNIX_PATH_MAX = 107;
/** Time for an NBD client to connect and finish the option phase, milliseconds. */
export const NBD_CONNECT_TIMEOUT_MS = 10_000;
/** An NBD server that says nothing for so long, with requests waiting, counts as lost, milliseconds. */
export const NBD_STALL_TIMEOUT_MS = 120_000;
/** The same, once who made the requests has given up, milliseconds. */
export const NBD_GIVE_UP_MS = 2_000;
/** Payload of one reply in the option phase, bytes: names and texts are at most 4 KiB each. */
export const NBD_OPTION_REPLY_MAX = 32 * KIB;
/** All replies to one option together, bytes: a list of exports that long is none for people any more. */
export const NBD_OPTION_ANSWER_MAX = 8 * MIB;
/** Buffer in which an NBD client receives heads and small payloads, bytes. */
export const NBD_CLIENT_RECEIVE_LENGTH = 64 * KIB;
/** Payloads with at least this much to come are received where they belong, without a copy, bytes. */
export const NBD_CLIENT_DIRECT_MIN = 16 * KIB;
/** Write payloads up to this are copied behind their heads, so that many requests are one write, bytes. */
export const NBD_CLIENT_COPY_MAX = 16 * KIB;
/**
 * What is copied of a payload that a file sends by itself, to be told when a full socket has room again,
 * bytes.
 */
export const NBD_CLIENT_PAYLOAD_PIECE = 16 * KIB;
/** Requests that one client connection has on the wire; more wait their turn. */
export const NBD_CLIENT_REQUESTS_MAX = 128;
/** Payload bytes that one client connection has on the wire before further requests wait. */
export const NBD_CLIENT_BYTES_MAX = 64 * MIB;
/** A block status chunk, bytes; QEMU sends up to 1 MiB of extents. */
export const NBD_CLIENT_STATUS_MAX = 4 * MIB;
/** Pieces in which the data of one read may come without order; more is an attack on our memory. */
export const NBD_CLIENT_FRAGMENTS_MAX = 4096;
/** Chunks of one reply that tell of errors. */
export const NBD_CLIENT_ERROR_CHUNKS_MAX = 256;
/** Bytes of one WRITE_ZEROES, TRIM, CACHE or BLOCK_STATUS; below 4 GiB and a multiple of every block size. */
export const NBD_CLIENT_EFFECT_MAX = 1 * GIB;
/** Connections that an NBD client opens to one export at most, unless told a number. */
export const NBD_CLIENT_CONNECTIONS_MAX = 16;
/** Pause before the second attempt to reconnect; doubles up to the maximum, milliseconds. */
export const NBD_RECONNECT_PAUSE_MIN_MS = 100;
export const NBD_RECONNECT_PAUSE_MAX_MS = 5_000;

/** Copies that one quorum node keeps; each read takes memory for each of them. */
export const QUORUM_CHILDREN_MAX = 64;
/** Memory of all reads of one quorum node at a time, bytes; further ones wait. */
export const QUORUM_READ_BYTES_MAX = 64 * MIB;
/** As BUFFER_POOL_IDLE_MAX, for what the copies of one quorum node are read into, bytes. */
export const QUORUM_POOL_IDLE_MAX = 16 * MIB;
/** Buffers that wait in the pool for their next use, bytes; what exceeds it goes back to the system. */
export const BUFFER_POOL_IDLE_MAX = 64 * MIB;
/** Data of one NBD option, bytes; longer ones are refused and skipped. Room for many context queries. */
export const NBD_OPTION_LENGTH_MAX = 64 * KIB;
/** Option data that is skipped before the client is taken for an attacker, bytes. */
export const NBD_OPTION_SKIP_MAX = 32 * MIB;
/** Queries in one SET_META_CONTEXT or LIST_META_CONTEXT. */
export const NBD_META_QUERIES_MAX = 1024;
/** Replies to options that a client has not read yet, bytes; past it no further option is read. */
export const NBD_OPTION_UNSENT_MAX = 1 * MIB;
/** Receive buffer of a connection that is quiet or new, bytes: some requests or one 4 KiB write. */
export const NBD_RECEIVE_SMALL = 16 * KIB;
/** Receive buffer of a busy connection, bytes: a 64 KiB write with its head in one read. */
export const NBD_RECEIVE_LARGE = 132 * KIB;
/** Joined replies of one tick, bytes; also the most that one write of small replies brings. */
export const NBD_REPLY_ARENA = 256 * KIB;
/** Read replies up to this many bytes are joined with others; longer ones have their own buffer. */
export const NBD_JOINED_READ_MAX = 32 * KIB;
/** WRITE payloads from this many bytes on are received straight into their own buffer. */
export const NBD_DIRECT_WRITE_MIN = 32 * KIB;
/** Longest piece in which a READ or WRITE is executed, bytes. */
export const NBD_PIECE_MAX = 1 * MIB;
/** The same while memory is short: what every connection may take whatever the others hold. */
export const NBD_PIECE_SCARCE = 64 * KIB;
/** Requests of one connection executed in a row before others have their turn. */
export const NBD_TURN_REQUESTS = 128;
/** Replies that are ready wait no longer for those to requests behind them, ms. */
export const NBD_REPLY_HELD_MS = 0.05;
/** Payload bytes of one connection received in a row before others have their turn. */
export const NBD_TURN_BYTES = 8 * MIB;
/** Extents in one BLOCK_STATUS reply and context; clients ask on from its end. */
export const NBD_STATUS_EXTENTS_MAX = 4096;
/** Extents looked up in a row before others have their turn. */
export const NBD_STATUS_TURN = 128;
/** Time that a client may leave replies unread while others wait for memory, ms. */
export const NBD_STALL_MAX_MS = 30_000;
/** Time for clients to take their last replies when the server stops, ms. */
export const NBD_STOP_GRACE_MS = 5_000;
/** WebSocket messages to the NBD server, bytes; the stream may be cut anywhere, so this is no limit on WRITE. */
export const NBD_WEBSOCKET_MESSAGE_MAX = 1 * MIB;
/** Interval of WebSocket pings; a peer that leaves two unanswered is lost, ms. */
export const NBD_WEBSOCKET_PING_MS = 15_000;

/** Time for each step of the daemon's end (jobs, exports, nodes, monitors), ms. */
export const SHUTDOWN_STEP_MS = 10_000;
/** Connections that may be lost under one request: past that, the request itself may be the cause. */
export const NBD_CLIENT_ATTEMPTS_MAX = 16;
/** Time for a goodbye to leave when an NBD client ends a connection, milliseconds. */
export const NBD_GOODBYE_MS = 1_000;
/** A server whose answers take so long there and back is far away: a link with delay lies between, ms. */
export const FAR_ROUND_TRIP_MS = 5;
/** How long an NBD client measures before it changes its number of connections, milliseconds. */
export const NBD_GROWTH_WINDOW_MS = 200;
/** How long it stays with a number that proved best, milliseconds. */
export const NBD_GROWTH_HOLD_MS = 10_000;
/** Time that the event loop stays awake for the next request where they come one by one, ms. */
export const NBD_POLL_WINDOW_MS = 0.15;
/** Requests further apart than this are not steady traffic, ms: a wake-up, and the client's own time. */
export const NBD_POLL_STEADY_MS = 0.2;
/** Steady requests in a row before the loop is kept awake. */
export const NBD_POLL_AFTER = 8;
/** The same after staying awake was in vain again and again: that costs 3 µs a request at most. */
export const NBD_POLL_BACKOFF_MAX = 64;
/** Requests served while awake that are worth one wait in vain. */
export const NBD_POLL_PAID = 16;

/** Bytes that the kernel holds for the peer on a UNIX socket, whose default is 208 KiB. */
export const NBD_UNIX_SEND_BUFFER = 1 * MIB;

/** Bytes that are encrypted in one go: what stays in the cache between the steps. */
export const CRYPTO_SLICE_LENGTH = 32 * KIB;
/** Bytes after whose encryption the event loop gets its turn. */
export const CRYPTO_TURN_LENGTH = 256 * KIB;
/**
 * Iterations of key derivation that a LUKS header may ask for; it may come from anybody. A minute or
 * so of one thread; what cryptsetup and QEMU write takes one or two seconds.
 */
export const LUKS_ITERATIONS_MAX = 100_000_000;
/** Longest secret, from a file or an option, bytes. */
export const SECRET_LENGTH_MAX = 1 * MIB;
/** Memory for L2 tables of one qcow2 image, unless options say otherwise, bytes; QEMU's value. */
export const QCOW2_L2_CACHE_DEFAULT = 32 * MIB;
/** Pieces in which L2 tables are read and kept, bytes. */
export const QCOW2_L2_SLICE_DEFAULT = 4 * KIB;
/** Time after which qcow2 tables that nobody used are let go, seconds. */
export const QCOW2_CACHE_CLEAN_SECONDS_DEFAULT = 600;
/** Most that one allocating write of a qcow2 image allocates and writes as one run, bytes. */
export const QCOW2_ALLOCATION_MAX = 16 * MIB;
/** An allocating write up to this long is joined with what is copied around it, bytes. */
export const QCOW2_JOINED_WRITE_MAX = 256 * KIB;
/** Host clusters given up, as runs or in bytes, past which metadata is written so that they come free. */
export const QCOW2_PENDING_FREES_MAX = 4096;
export const QCOW2_PENDING_FREE_BYTES_MAX = 256 * MIB;
/** Decompressed clusters that one qcow2 image keeps for the next read, bytes. */
export const QCOW2_DECOMPRESSED_MAX = 4 * MIB;
/** Memory that one qcow2 image keeps for the next compressed data, bytes. */
export const QCOW2_SCRATCH_IDLE_MAX = 8 * MIB;
/** Clusters that one write to a qcow2 image compresses at a time: as many as the pool has threads. */
export const QCOW2_COMPRESS_AT_ONCE = 4;
/** Clusters that are copied, zeroed or preallocated at a time, bytes. */
export const QCOW2_STEP = 64 * MIB;
