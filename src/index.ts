// SPDX-License-Identifier: MIT
/** The library entry `diskferry`: everything of `diskferry/nbd` and `diskferry/qmp`. */
export * from './nbd.js';
export * from './qmp.js';
