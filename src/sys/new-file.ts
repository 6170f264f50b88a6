// SPDX-License-Identifier: MIT
/** Files that are made, and taken away again when what was to be in them could not be made. */
import * as fs from 'node:fs';
import { fsCall } from './pool.js';

const { O_CREAT, O_EXCL, O_WRONLY, O_NOCTTY } = fs.constants;
/** Permissions of a file that is made, less what the umask takes. */
const CREATE_MODE = 0o644;

export class NewFile {
  private constructor(
    readonly path: string,
    private readonly identity: string,
  ) {}

  /**
   * Makes an empty file where there is nothing, not even a link to nowhere.
   * @returns undefined when something is there, or none can be made: opening it will tell
   */
  static async make(path: string): Promise<NewFile | undefined> {
    const flags = O_CREAT | O_EXCL | O_WRONLY | O_NOCTTY;
    let fd: number;
    try {
      fd = await fsCall<number>((done) => fs.open(path, flags, CREATE_MODE, done));
    } catch {
      return undefined;
    }
    try {
      const stat = await fsCall<fs.BigIntStats>((done) => fs.fstat(fd, { bigint: true }, done));
      return new NewFile(path, identityOf(stat));
    } finally {
      await fsCall<void>((done) => fs.close(fd, done));
    }
  }

  /** Takes it away, if its name still leads to it; where that can't be it stays. */
  async remove(): Promise<void> {
    try {
      const stat = await fsCall<fs.BigIntStats>((done) =>
        fs.lstat(this.path, { bigint: true }, done),
      );
      if (identityOf(stat) !== this.identity) return;
      await fsCall<void>((done) => fs.unlink(this.path, done));
    } catch {
      // Somebody else has taken it away, or nobody may: the first error is the one to be told.
    }
  }
}

function identityOf({ dev, ino }: fs.BigIntStats): string {
  return `${dev}:${ino}`;
}
