// SPDX-License-Identifier: MIT
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { checkImports, checkLayers } from '../../../scripts/check-layers.js';
import { checkText, checkTidy } from '../../../scripts/check-tidy.js';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');

describe('layers', () => {
  it('are kept by every import', () => {
    expect(checkLayers(ROOT)).toEqual([]);
  });

  it('are not crossed upwards, sideways, or to a driver by name', () => {
    const check = (file: string, specifier: string): string[] =>
      checkImports(file, `import { x } from '${specifier}';`);
    expect(check('src/block/node.ts', '../job/job.js')).toHaveLength(1);
    expect(check('src/job/job.ts', '../nbd/server/server.js')).toHaveLength(1);
    expect(check('src/nbd/server/server.ts', '../../block/driver/file.js')).toHaveLength(1);
    expect(check('src/block/node.ts', 'koffi')).toHaveLength(1);
    expect(check('protocol/nbd/constants.ts', 'node:fs')).toHaveLength(1);
    expect(check('src/block/node.ts', '../base/errors.js')).toEqual([]);
  });
});

describe('tidiness', () => {
  it('is kept by every file', () => {
    expect(checkTidy(ROOT)).toEqual([]);
  });

  it('notices long functions, long files and a missing licence line', () => {
    const head = '// SPDX-License-Identifier: MIT\n';
    const long = `${head}function f() {\n${'  work;\n'.repeat(80)}}\n`;
    expect(checkText('src/a.ts', long)).toEqual(['src/a.ts:2: a function of 82 lines']);
    expect(checkText('src/a.ts', `${head}${'x;\n'.repeat(700)}`)).toHaveLength(1);
    expect(checkText('src/a.ts', 'x;\n')).toHaveLength(1);
  });
});
