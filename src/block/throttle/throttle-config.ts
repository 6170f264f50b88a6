// SPDX-License-Identifier: MIT
/** Limits of a throttle group: their names, defaults and rules. @see qapi ThrottleLimits, throttle.txt */
import { BlockError } from '../../base/errors.js';

/** What is limited; also the names of the sustained limits in QMP. */
const BUCKET_NAMES = [
  'bps-total',
  'bps-read',
  'bps-write',
  'iops-total',
  'iops-read',
  'iops-write',
] as const;
export type BucketName = (typeof BUCKET_NAMES)[number];

export type LimitName = BucketName | `${BucketName}-max` | `${BucketName}-max-length` | 'iops-size';

export const LIMIT_NAMES: readonly LimitName[] = [
  ...BUCKET_NAMES.flatMap((bucket): LimitName[] => [
    bucket,
    `${bucket}-max`,
    `${bucket}-max-length`,
  ]),
  'iops-size',
];

/** Wire spelling. Bytes or operations a second; `-max-length` in seconds; `iops-size` in bytes. */
export type ThrottleLimits = Readonly<Partial<Record<LimitName, number>>>;
export type ThrottleConfig = Readonly<Record<LimitName, number>>;

/** Highest value of a limit, bytes or operations a second. */
const VALUE_MAX = 1e15;
const LENGTH_MAX = 2 ** 32 - 1;

/** No limits at all. */
export const UNLIMITED: ThrottleConfig = Object.fromEntries(
  LIMIT_NAMES.map((name) => [name, name.endsWith('-max-length') ? 1 : 0]),
) as ThrottleConfig;

/**
 * The configuration with some of its limits changed.
 * @throws BlockError DF_INVALID, in QEMU's words, when they don't go together
 */
export function changeLimits(config: ThrottleConfig, limits: ThrottleLimits): ThrottleConfig {
  const changed = { ...config, ...limits };
  for (const bucket of BUCKET_NAMES) {
    const length = changed[`${bucket}-max-length`];
    if (length < 0 || length > LENGTH_MAX) {
      throw invalid(`${bucket}-max-length value must be in the range [0, ${LENGTH_MAX}]`);
    }
  }
  checkTogether(changed);
  for (const bucket of BUCKET_NAMES) checkBucket(changed, bucket);
  return changed;
}

/** False when nothing is limited. */
export function limitsAnything(config: ThrottleConfig): boolean {
  return BUCKET_NAMES.some((bucket) => config[bucket] > 0);
}

function checkTogether(config: ThrottleConfig): void {
  const totalAndOther = (unit: 'bps' | 'iops', suffix: '' | '-max'): boolean =>
    config[`${unit}-total${suffix}`] !== 0 &&
    (config[`${unit}-read${suffix}`] !== 0 || config[`${unit}-write${suffix}`] !== 0);
  if (
    totalAndOther('bps', '') ||
    totalAndOther('iops', '') ||
    totalAndOther('bps', '-max') ||
    totalAndOther('iops', '-max')
  ) {
    throw invalid(
      'bps/iops/max total values and read/write values cannot be used at the same time',
    );
  }
  const { 'iops-total': total, 'iops-read': read, 'iops-write': write } = config;
  if (config['iops-size'] < 0) throw invalid('iops-size cannot be negative');
  if (config['iops-size'] > 0 && total === 0 && read === 0 && write === 0) {
    throw invalid('iops size requires an iops value to be set');
  }
}

function checkBucket(config: ThrottleConfig, bucket: BucketName): void {
  const average = config[bucket];
  const max = config[`${bucket}-max`];
  const length = config[`${bucket}-max-length`];
  if (average < 0 || average > VALUE_MAX || max < 0 || max > VALUE_MAX) {
    throw invalid(`bps/iops/max values must be within [0, ${VALUE_MAX}]`);
  }
  if (length === 0) throw invalid('the burst length cannot be 0');
  if (length > 1 && max === 0) throw invalid('burst length set without burst rate');
  if (max > 0 && length > VALUE_MAX / max) {
    throw invalid('burst length too high for this burst rate');
  }
  if (max > 0 && average === 0) {
    throw invalid('bps_max/iops_max require corresponding bps/iops values');
  }
  if (max > 0 && max < average) {
    throw invalid('bps_max/iops_max cannot be lower than bps/iops');
  }
}

const invalid = (message: string): BlockError => new BlockError('DF_INVALID', message);
