// SPDX-License-Identifier: MIT
/** What this program calls itself. */
import { createRequire } from 'node:module';

/** The release of QEMU whose QMP we speak: what managers look at to know what to expect. */
const QEMU_RELEASE = { major: 7, minor: 2, micro: 22 } as const;

const packageInfo = createRequire(import.meta.url)('diskferry/package.json') as { version: string };

export const VERSION: string = packageInfo.version;

export function qmpVersion() {
  return { qemu: QEMU_RELEASE, package: `diskferry ${VERSION}` };
}

/** What `--version` prints. */
export const VERSION_TEXT = `diskferryd version ${VERSION} (QMP as of QEMU ${Object.values(QEMU_RELEASE).join('.')})\n`;
