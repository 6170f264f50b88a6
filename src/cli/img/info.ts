// SPDX-License-Identifier: MIT
/** `diskferry img info`: what an image is. */
import type { ImageInfo } from '../../../protocol/qapi/block-nodes-info.js';
import type { Output } from '../../../protocol/qapi/types.js';
import { describeImage } from '../../qmp/commands/describe-node.js';
import { COMMON, OUTPUT, parseImgArguments, wantsJson, wordsFor } from './arguments.js';
import { ImageSession } from './session.js';
import { sizeText } from './sizes.js';
import { snapshotTable } from './snapshot-table.js';

type Info = Output<typeof ImageInfo>;

export async function info(args: string[]): Promise<number> {
  const { values, positionals } = parseImgArguments(args, {
    ...COMMON,
    ...OUTPUT,
    'backing-chain': { type: 'boolean' },
  });
  const [name = ''] = wordsFor(positionals, 'one image file name');
  const json = wantsJson(values.output);
  return ImageSession.run(values.object, async (session) => {
    const image = await session.open({
      name,
      format: values.format,
      imageOpts: values['image-opts'],
      forceShare: values['force-share'],
      metadataOnly: true,
      // An image can be looked at where what lies below it is missing.
      noBacking: values['backing-chain'] !== true,
    });
    const found: Info[] = [];
    for (
      let node = image.root.node as typeof image.root.node | undefined;
      node !== undefined;
      node = node.children.get('backing')?.node
    ) {
      const described = await describeImage(node, { flat: true });
      if (values['backing-chain'] === true) {
        found.push(described);
        continue;
      }
      // That nothing is below it is our doing, and no part of its name.
      const { filename, features } = node.driver;
      found.push(features.backing && filename !== '' ? { ...described, filename } : described);
      break;
    }
    const text = json
      ? `${JSON.stringify(values['backing-chain'] === true ? found : found[0], undefined, 4)}\n`
      : found.map(humanText).join('\n');
    process.stdout.write(text);
    return 0;
  });
}

function humanText(image: Info): string {
  const { filename, format, ...rest } = image;
  const lines = [
    `image: ${filename}`,
    `file format: ${format}`,
    `virtual size: ${sizeText(image['virtual-size'])} (${image['virtual-size']} bytes)`,
    `disk size: ${image['actual-size'] === undefined ? 'unavailable' : sizeText(image['actual-size'])}`,
  ];
  if (image.encrypted === true) lines.push('encrypted: yes');
  if (image['cluster-size'] !== undefined) lines.push(`cluster_size: ${image['cluster-size']}`);
  if (image['backing-filename'] !== undefined) {
    const full = image['full-backing-filename'];
    const actual = full !== undefined && full !== image['backing-filename'] ? full : undefined;
    const note = actual === undefined ? '' : ` (actual path: ${actual})`;
    lines.push(`backing file: ${image['backing-filename']}${note}`);
  }
  const backingFormat = image['backing-filename-format'];
  if (backingFormat !== undefined) lines.push(`backing file format: ${backingFormat}`);
  if (image.snapshots !== undefined) lines.push(...snapshotTable(image.snapshots));
  const specific = (rest as { 'format-specific'?: { data: object } })['format-specific'];
  if (specific !== undefined) {
    lines.push('Format specific information:', ...nested(specific.data, 1));
  }
  return `${lines.join('\n')}\n`;
}

/** Where QEMU has them: members of a kind of image that people are used to find in this order. */
const ORDER: readonly string[] = [
  ...['compat', 'compression-type', 'lazy-refcounts', 'flags', 'name', 'granularity', 'bitmaps'],
  ...['refcount-bits', 'encrypt', 'data-file', 'data-file-raw', 'corrupt', 'extended-l2'],
  ...['ivgen-alg', 'hash-alg', 'cipher-alg', 'uuid', 'format', 'cipher-mode', 'active', 'iters'],
  ...['key-offset', 'stripes', 'slots', 'payload-offset', 'master-key-iters'],
];

function ordered(value: object): [string, unknown][] {
  const place = (key: string): number => {
    const at = ORDER.indexOf(key);
    return at === -1 ? ORDER.length : at;
  };
  return Object.entries(value).sort(([a], [b]) => place(a) - place(b));
}

/** Names as people read them: "lazy-refcounts" is "lazy refcounts". */
function nested(value: object, depth: number): string[] {
  const indent = '    '.repeat(depth);
  return ordered(value).flatMap(([key, member]) => {
    const label = Array.isArray(value) ? `[${key}]` : key.replaceAll('-', ' ');
    if (typeof member !== 'object' || member === null) return [`${indent}${label}: ${member}`];
    return [`${indent}${label}:`, ...nested(member, depth + 1)];
  });
}
