// SPDX-License-Identifier: MIT
/** The library entry `diskferry`: everything of `diskferry/nbd` and `diskferry/qmp`, and the version. */
export { VERSION } from './daemon/version.js';
export * from './nbd.js';
export * from './qmp.js';
