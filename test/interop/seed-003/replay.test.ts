// SPDX-License-Identifier: MIT
/**
 * The cases and dialogues of QEMU's guides to live block operations and to bitmaps, by this daemon and
 * by QEMU's. qemu-img judges the images.
 */
import { describeFlows } from '../../suite/flows.suite.js';

describeFlows(new URL('.', import.meta.url));
