#!/usr/bin/env node
// SPDX-License-Identifier: MIT
/** Starts diskferryd. */
import start = require('./start-program.cjs');

start.startProgram('diskferryd');
