// SPDX-License-Identifier: MIT
/**
 * The dialogues of storage managers, replayed: this daemon against itself, with QEMU at either end,
 * and QEMU alone, which shows that the dialogue is what QEMU does.
 */
import { describeFlows } from '../../suite/flows.suite.js';

describeFlows(new URL('.', import.meta.url));
