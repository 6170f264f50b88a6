// SPDX-License-Identifier: MIT
/** What the older documents name beside the guides: commands and their errors, by this daemon and by QEMU's. */
import { describeFlows } from '../../suite/flows.suite.js';

describeFlows(new URL('.', import.meta.url));
