// SPDX-License-Identifier: MIT
/** Node's callback functions as promises: one promise a call, and errors in our form. */
import { toSystemError } from './linux.js';

type Done<T> = (error: unknown, value?: T) => void;

/** @throws SystemError */
export function fsCall<T>(start: (done: Done<T>) => void): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    start((error, value) => {
      if (error !== null && error !== undefined) reject(toSystemError(error));
      else resolve(value as T);
    });
  });
}
