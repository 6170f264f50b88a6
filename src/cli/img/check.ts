// SPDX-License-Identifier: MIT
/** `diskferry img check`: is an image sound? Mends it, where that is asked for. */
import { BlockError } from '../../base/errors.js';
import type { BlockBackend } from '../../block/backend.js';
import type { DriverDefinition } from '../../block/block-driver.js';
import type { CheckFix, CheckResult } from '../../block/image-check.js';
import { COMMON, OUTPUT, PROGRESS, parseImgArguments, wantsJson, wordsFor } from './arguments.js';
import { withExitStatus } from './exit-status.js';
import { cacheMode, ImageSession } from './session.js';

/** Exit status besides 0 (sound) and 1 (the check could not be made). */
const CORRUPT = 2;
const LEAKS = 3;
const NOT_SUPPORTED = 63;

export async function check(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...OUTPUT,
    quiet: PROGRESS.quiet,
    repair: { type: 'string', short: 'r' },
    'source-cache': { type: 'string', short: 'T' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const json = wantsJson(values.output);
  const fix = parseFix(values.repair);
  const show = (text: string): void => {
    if (values.quiet !== true) process.stdout.write(text);
  };
  return ImageSession.run(values.object, async (session) => {
    const { format, file } = await session.openFile({
      name,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
      writable: fix !== 'none',
      cache: cacheMode(values['source-cache'] ?? 'writeback'),
    });
    const run = checkerOf(session.graph.drivers.get(format), file);
    let result = await run(fix);
    if (result.corruptionsFixed > 0 || result.leaksFixed > 0) {
      const { corruptionsFixed, leaksFixed } = result;
      if (!json) show(fixedText(result));
      result = { ...(await run('none')), corruptionsFixed, leaksFixed };
    }
    show(json ? jsonText(result, { name, format }) : humanText(result));
    if (result.checkErrors > 0) throw new BlockError('DF_CORRUPT_IMAGE', 'Check failed');
    if (result.corruptions > 0) return CORRUPT;
    return result.leaks > 0 ? LEAKS : 0;
  });
}

/** The check that a format offers, of one file. @throws Error when it offers none */
function checkerOf(
  { checker }: DriverDefinition,
  file: BlockBackend,
): (fix: CheckFix) => Promise<CheckResult> {
  if (checker === undefined) {
    const error = new BlockError('DF_NOT_SUPPORTED', 'This image format does not support checks');
    throw withExitStatus(error, NOT_SUPPORTED);
  }
  const say = (text: string): unknown => process.stderr.write(`${text}\n`);
  return async (fix) => {
    try {
      return await checker.check({ fix, file: file.root, say });
    } catch (error) {
      throw new BlockError('DF_CORRUPT_IMAGE', 'Check failed', {}, { cause: error });
    }
  };
}

function parseFix(text: string | undefined): CheckFix {
  if (text === undefined) return 'none';
  if (text === 'leaks' || text === 'all') return text;
  throw new BlockError(
    'DF_INVALID',
    `Unknown option value for -r (expecting 'leaks' or 'all'): ${text}`,
  );
}

/** @see qapi ImageCheck: a count of 0 is left out */
function jsonText(
  result: CheckResult,
  { name, format }: { readonly name: string; readonly format: string },
): string {
  const counts = {
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
    corruptions: result.corruptions,
    leaks: result.leaks,
    'corruptions-fixed': result.corruptionsFixed,
    'leaks-fixed': result.leaksFixed,
  };
  const known = Object.entries(counts).filter(([, count]) => count !== 0);
  const all = { filename: name, format, 'check-errors': result.checkErrors };
  return `${JSON.stringify({ ...all, ...Object.fromEntries(known) }, undefined, 4)}\n`;
}

function fixedText({ leaksFixed, corruptionsFixed }: CheckResult): string {
  return (
    'The following inconsistencies were found and repaired:\n\n' +
    `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n` +
    'Double checking the fixed image now...\n'
  );
}

function humanText(result: CheckResult): string {
  const { corruptions, leaks, checkErrors, imageEndOffset } = result;
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result;
  const parts: string[] = [];
  if (corruptions > 0) {
    parts.push(
      `\n${corruptions} errors were found on the image.\n` +
        'Data may be corrupted, or further writes to the image may corrupt it.\n',
    );
  }
  if (leaks > 0) {
    parts.push(
      `\n${leaks} leaked clusters were found on the image.\n` +
        'This means waste of disk space, but no harm to data.\n',
    );
  }
  if (checkErrors > 0) {
    parts.push(`\n${checkErrors} internal errors have occurred during the check.\n`);
  }
  if (parts.length === 0) parts.push('No errors were found on the image.\n');
  if (totalClusters > 0 && allocatedClusters > 0) {
    parts.push(
      `${allocatedClusters}/${totalClusters} = ` +
        `${percent(allocatedClusters, totalClusters)}% allocated, ` +
        `${percent(fragmentedClusters, allocatedClusters)}% fragmented, ` +
        `${percent(compressedClusters, allocatedClusters)}% compressed clusters\n`,
    );
  }
  if (imageEndOffset > 0) parts.push(`Image end offset: ${imageEndOffset}\n`);
  return parts.join('');
}

/** Two decimals, and what lies half way between goes to the even one, as C's printf has it. */
function percent(part: number, whole: number): string {
  const value = (part * 100) / whole;
  const isHalfWay = Number.isInteger(value * 8) && (value * 200) % 2 === 1;
  if (!isHalfWay) return value.toFixed(2);
  const below = Math.floor(value * 100);
  return ((below + (below % 2)) / 100).toFixed(2);
}
