#!/usr/bin/env node
// SPDX-License-Identifier: MIT
/** Starts the diskferry command. */
import start = require('../daemon/start-program.cjs');

start.startProgram('diskferry');
