// SPDX-License-Identifier: MIT
/** A row per code: what an NBD peer sees, what a QMP peer sees. Codes are API; texts are not. */
export const ERROR_CODES = {
  /** The medium, or a peer that stands for it, failed. */
  DF_IO: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  DF_CORRUPT_IMAGE: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  DF_NO_SPACE: { nbd: 'NBD_ENOSPC', qmp: 'GenericError' },
  DF_NO_MEMORY: { nbd: 'NBD_ENOMEM', qmp: 'GenericError' },
  /** An argument, option or request that makes no sense, whatever the state. */
  DF_INVALID: { nbd: 'NBD_EINVAL', qmp: 'GenericError' },
  /** Offset and length reach past the end. */
  DF_OUT_OF_RANGE: { nbd: 'NBD_EINVAL', qmp: 'GenericError' },
  DF_READ_ONLY: { nbd: 'NBD_EPERM', qmp: 'GenericError' },
  /** The operating system refused access. */
  DF_ACCESS: { nbd: 'NBD_EPERM', qmp: 'GenericError' },
  DF_NOT_SUPPORTED: { nbd: 'NBD_ENOTSUP', qmp: 'GenericError' },
  DF_TOO_LARGE: { nbd: 'NBD_EOVERFLOW', qmp: 'GenericError' },
  /** Two parents want of a node what excludes each other. */
  DF_PERMISSION_CONFLICT: { nbd: 'NBD_EPERM', qmp: 'GenericError' },
  /** Another process holds the image. */
  DF_LOCKED: { nbd: 'NBD_EPERM', qmp: 'GenericError' },
  /** The thing named is in use and so can't be changed now. */
  DF_IN_USE: { nbd: 'NBD_EPERM', qmp: 'GenericError' },
  DF_EXISTS: { nbd: 'NBD_EINVAL', qmp: 'GenericError' },
  DF_NOT_FOUND: { nbd: 'NBD_EINVAL', qmp: 'GenericError' },
  DF_NODE_NOT_FOUND: { nbd: 'NBD_EINVAL', qmp: 'DeviceNotFound' },
  DF_JOB_NOT_FOUND: { nbd: 'NBD_EINVAL', qmp: 'DeviceNotActive' },
  DF_COMMAND_NOT_FOUND: { nbd: 'NBD_EINVAL', qmp: 'CommandNotFound' },
  /** A peer broke the rules of its protocol. */
  DF_PROTOCOL: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  /** The connection to a peer was refused, or is lost and did not come back in time. */
  DF_DISCONNECTED: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  DF_TIMEOUT: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  DF_CANCELLED: { nbd: 'NBD_EIO', qmp: 'GenericError' },
  DF_SHUTDOWN: { nbd: 'NBD_ESHUTDOWN', qmp: 'GenericError' },
} as const;
export type ErrorCode = keyof typeof ERROR_CODES;
export type ErrorContext = {
  node?: string;
  op?: string;
  path?: string;
  offset?: number;
  length?: number;
  /** The errno name of the operating system's error that caused it: 'ENOSPC'. */
  errno?: string;
  /** Advice for a person; a terminal shows it on a line of its own below the message. */
  hint?: string;
};

/**
 * The error of every layer above the operating system.
 * `message` says what failed, with its values; `cause` says why. Neither repeats the other.
 */
export class BlockError extends Error {
  override readonly name = 'BlockError';
  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly context: ErrorContext = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Any thrown value as an Error, for `cause` and logs. */
export function toError(value: unknown): Error {
  return value instanceof Error ? value : new Error(String(value));
}

/** The errno name ('ENOENT') that Node put on a system error, or undefined. */
export function errnoName(error: unknown): string | undefined {
  if (error instanceof BlockError) return error.context.errno;
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') {
    return error.code;
  }
  return undefined;
}

const CODE_OF_ERRNO: Readonly<Record<string, ErrorCode>> = {
  ENOSPC: 'DF_NO_SPACE',
  EDQUOT: 'DF_NO_SPACE',
  EFBIG: 'DF_NO_SPACE',
  EACCES: 'DF_ACCESS',
  EPERM: 'DF_ACCESS',
  EROFS: 'DF_READ_ONLY',
  ENOMEM: 'DF_NO_MEMORY',
  ENOENT: 'DF_NOT_FOUND',
  EEXIST: 'DF_EXISTS',
  EINVAL: 'DF_INVALID',
  EOPNOTSUPP: 'DF_NOT_SUPPORTED',
  ENOTSUP: 'DF_NOT_SUPPORTED',
  ENOSYS: 'DF_NOT_SUPPORTED',
  ETIMEDOUT: 'DF_TIMEOUT',
  ECONNREFUSED: 'DF_DISCONNECTED',
  ECONNRESET: 'DF_DISCONNECTED',
  EPIPE: 'DF_DISCONNECTED',
};

/** Wraps a system error: the code follows its errno (`DF_IO` where nothing fits better). */
export function fromSystemError(
  error: unknown,
  message: string,
  context: ErrorContext = {},
): BlockError {
  const errno = errnoName(error);
  const code = (errno !== undefined ? CODE_OF_ERRNO[errno] : undefined) ?? 'DF_IO';
  return new BlockError(code, message, errno !== undefined ? { ...context, errno } : context, {
    cause: error,
  });
}
