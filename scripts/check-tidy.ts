// SPDX-License-Identifier: MIT
/** Rules of style that no formatter or linter holds: lengths, licence lines, words and calls that stay out. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { sourceFiles } from './source-files.js';

const FILE_LINES_MAX = 500;
const FUNCTION_LINES_MAX = 70;
/** Functions of tests that hold a whole suite of rules. */
const SUITE_LINES_MAX = 160;
const COLUMNS_MAX = 100;
/** Prose is not laid out by the formatter; it may overhang a little. */
const COMMENT_COLUMNS_MAX = 115;

interface Ban {
  readonly pattern: RegExp;
  readonly why: string;
  /** Files where it is allowed. */
  readonly except?: RegExp;
}

const BANS: readonly Ban[] = [
  {
    pattern: /\bprocess\.\w/,
    why: 'process belongs to daemon and cli',
    except: /^(src\/(daemon|cli)|scripts|test)\//,
  },
  {
    pattern: /\bconsole\./,
    why: 'logs go through src/base/log.ts',
    except: /^(src\/cli|scripts|test)\//,
  },
  {
    pattern: /\bDate\.now\(|\bnew Date\(\)/,
    why: 'time comes from src/base/clock.ts',
    except: /^(src\/(base|qmp|daemon|cli)|scripts|test)\//,
  },
  {
    pattern: /\bT[O]DO\b|\bFI[X]ME\b|\bX[X]X\b/,
    why: 'unfinished work is an issue, not a comment',
  },
  {
    pattern: /\b(it|test|describe)\.(sk[i]p|on[l]y|to[d]o|sk[i]pIf|ru[n]If)\b/,
    why: 'a test runs or is not there',
  },
  { pattern: /@ts-(ign[o]re|noch[e]ck|exp[e]ct-error)/, why: 'the type checker stays on' },
];

/** Problems of one file, each with its place. */
export function checkText(file: string, text: string): string[] {
  const lines = text.split('\n');
  const problems = checkLines(file, lines);
  if (!/^(#!.*\n)?\/\/ SPDX-License-Identifier: MIT\n/.test(text)) {
    problems.push(`${file}: the first line is no SPDX licence line`);
  }
  if (lines.length - 1 > FILE_LINES_MAX) {
    problems.push(`${file}: ${lines.length - 1} lines, at most ${FILE_LINES_MAX}`);
  }
  return [...problems, ...checkFunctions(file, lines)];
}

function checkLines(file: string, lines: readonly string[]): string[] {
  const problems: string[] = [];
  lines.forEach((line, index) => {
    const place = `${file}:${index + 1}`;
    // Strings and patterns that can't be broken are the formatter's affair.
    const unbreakable = /['"`/]/.test(line);
    const comment = /^\s*(\*|\/\*|\/\/)/.test(line);
    if (line.length > (comment ? COMMENT_COLUMNS_MAX : COLUMNS_MAX) && (comment || !unbreakable)) {
      problems.push(`${place}: ${line.length} columns`);
    }
    for (const { pattern, why, except } of BANS) {
      if (except?.test(file) !== true && pattern.test(line)) problems.push(`${place}: ${why}`);
    }
  });
  return problems;
}

const FUNCTION_START =
  /^(\s*)(?:(?:export|static|protected|private|override|async|get|set)\s+)*(?:function\b\*?\s*)?[#\w]+(?:<[^>]*>)?\(/;
const NO_FUNCTION = /^\s*(?:if|for|while|switch|catch|return|await|describe|it|expect|test)\b/;

/** Relies on the formatter: a function's last line is a brace at the column where it begins. */
function checkFunctions(file: string, lines: readonly string[]): string[] {
  const problems: string[] = [];
  lines.forEach((line, index) => {
    const indent = FUNCTION_START.exec(line)?.[1];
    if (indent === undefined || NO_FUNCTION.test(line) || /[;,]$/.test(line)) return;
    const last = new RegExp(`^${indent}\\}[,;)]*$`);
    const end = lines.findIndex((other, at) => at > index && last.test(other));
    const length = end < 0 ? 0 : end - index + 1;
    if (length > (file.startsWith('test/') ? SUITE_LINES_MAX : FUNCTION_LINES_MAX)) {
      problems.push(`${file}:${index + 1}: a function of ${length} lines`);
    }
  });
  return problems;
}

/** Checks every source, test and script below `root`. */
export function checkTidy(root: string): string[] {
  const files = sourceFiles(root, ['src', 'protocol', 'test', 'scripts']);
  return files.flatMap((file) => checkText(file, readFileSync(path.join(root, file), 'utf8')));
}
