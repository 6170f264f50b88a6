// SPDX-License-Identifier: MIT
import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { BlockdevOptions } from '../../../protocol/qapi/block-core-options.js';
import { BlockExportOptions } from '../../../protocol/qapi/block-export.js';
import { ChardevBackend } from '../../../protocol/qapi/char.js';
import { ObjectOptions } from '../../../protocol/qapi/qom.js';
import {
  type DaemonOptions,
  descriptorsOf,
  parseCommandLine,
} from '../../../src/daemon/options.js';

function run(...args: string[]): DaemonOptions {
  const line = parseCommandLine(args, 'version');
  if (line.kind !== 'run') throw new Error(`printed ${line.text}`);
  return line.options;
}

function refusal(...args: string[]): string {
  try {
    parseCommandLine(args, 'version');
  } catch (error) {
    return (error as Error).message;
  }
  return '';
}

describe('command line of diskferryd', () => {
  it('keeps the order of options that make something', () => {
    const { actions } = run(
      ...['--chardev', 'socket,id=c,path=/tmp/x,server=on,wait=off', '--monitor', 'c'],
      ...[
        '--object',
        'throttle-group,id=t,limits.bps-total=10',
        '--blockdev',
        'null-co,node-name=n',
      ],
      ...['--nbd-server', 'addr.type=unix,addr.path=/tmp/y', '--export', 'nbd,id=e,node-name=n'],
    );
    expect(actions.map(({ kind }) => kind)).toEqual([
      ...['chardev', 'monitor', 'object', 'blockdev', 'nbd-server', 'export'],
    ]);
  });

  it('turns strings into what the schema says', () => {
    const { actions } = run(
      '--blockdev',
      'raw,node-name=r,offset=1k,read-only=on,file.driver=null-co,file.size=1048576',
    );
    expect(actions[0]).toMatchObject({
      kind: 'blockdev',
      options: { 'read-only': true, offset: 1024, file: { driver: 'null-co', size: 1048576 } },
    });
  });

  it('takes JSON where the argument starts with a brace', () => {
    const { actions } = run('--blockdev', '{"driver":"null-co","node-name":"n","size":512}');
    expect(actions[0]).toMatchObject({ options: { driver: 'null-co', size: 512 } });
  });

  it('takes several NBD servers', () => {
    const { actions } = run(
      ...['--nbd-server', 'addr.type=inet,addr.host=,addr.port=0,websocket=on'],
      ...['--nbd-server', 'addr.type=unix,addr.path=/tmp/y,max-connections=3'],
    );
    expect(actions).toMatchObject([
      { options: { addr: { type: 'inet', host: '', port: '0' }, websocket: true } },
      { options: { 'max-connections': 3 } },
    ]);
  });

  it('accepts abbreviations, = and repeated scalars', () => {
    expect(run('--pid=/a', '--pidfile', '/b', '--log=debug', '--daem')).toEqual({
      ...{ actions: [], daemonize: true, pidfile: '/b', logLevel: 'debug' },
    });
  });

  it('prints help and version before it looks at values', () => {
    expect(parseCommandLine(['--blockdev', 'nonsense', '-V'], 'v1')).toEqual({
      ...{ kind: 'print', text: 'v1' },
    });
    expect(parseCommandLine(['--help'], 'v1')).toMatchObject({ kind: 'print' });
  });

  it('names a secret that it refuses without what is in it', () => {
    for (const rest of ['data=S3cret,format=hex', 'data=S3cret,x=y', 'data=S3cret,file']) {
      const parse = () => parseCommandLine(['--object', `secret,id=s,${rest}`], '');
      expect(parse).toThrow('--object secret,...: ');
      expect(parse).not.toThrow('S3cret');
    }
  });

  const printed = (...args: string[]): string => {
    const line = parseCommandLine(args, '');
    if (line.kind !== 'print') throw new Error('nothing printed');
    return line.text;
  };

  it.each([
    ['--object', 'List of user creatable objects:', ObjectOptions.branches],
    ['--blockdev', 'List of block drivers:', BlockdevOptions.branches],
    ['--export', 'List of export types:', BlockExportOptions.branches],
    ['--chardev', 'List of chardev backend types:', ChardevBackend.branches],
  ])('lists what there is for %s help, and the options of each', (option, heading, kinds) => {
    const [first, ...rows] = printed(option, 'help').trimEnd().split('\n');
    expect(first).toBe(heading);
    const listed = rows.map((row) => row.trim().split(' ')[0] ?? '');
    expect([...listed].sort()).toEqual(Object.keys(kinds).sort());
    for (const kind of listed) {
      expect(printed(option, `${kind},help`)).toMatch(
        new RegExp(`^${kind} options:\n( {2}.+\n)+$`),
      );
    }
    expect(refusal(option, 'constructor,help')).toContain("'constructor'");
  });

  it('writes options of nodes as they are given', () => {
    const lines = printed('--blockdev', 'nbd,help').split('\n');
    const row = (key: string) => lines.find((line) => line.startsWith(`  ${key}=`));
    expect(row('server.type')).toContain('<inet|unix|');
    expect(row('server.port')).toContain('inet: ');
    expect(row('reconnect-delay')).toMatch(/<number> .*default: 0/);
    expect(row('cache.direct')).toContain('<on|off>');
    expect(printed('--blockdev', 'raw,help')).toMatch(
      /file=<string> .*required.*; or file.driver=DRIVER/,
    );
    expect(printed('--blockdev', 'quorum,help')).toContain('children.0=<string>');
    expect(printed('--blockdev', 'blkdebug,help')).toContain('inject-error.0.event=<');
    expect(printed('--nbd-server', 'help')).toContain('addr.path=<string>');
    expect(printed('--monitor', 'help')).toContain('chardev=<string>');
  });

  it('names only options of character devices that there are', () => {
    for (const kind of Object.keys(ChardevBackend.branches)) {
      for (const [, name] of printed('--chardev', `${kind},help`).matchAll(
        /^ {2}([a-z0-9-]+)=/gm,
      )) {
        expect(refusal('--chardev', `${kind},id=a,${name}=1`)).not.toContain('Invalid parameter');
      }
    }
  });

  it('refuses trace points with a word of advice', () => {
    expect(refusal('--trace', 'enable=*')).toMatch(/^--trace enable=\*: .*--log-level trace/);
  });

  it('refuses a log level that there is not', () => {
    expect(refusal('--log-level', 'loud')).toMatch(/^--log-level loud: 'loud' is no log level/);
  });

  it.each([
    ['--blockdev', 'file,node-name=a,filename=x,filename=y', "Parameter 'filename' is given twice"],
    ['--blockdev', '{"driver":"null-co","size":1,"size":2}', "duplicate key 'size'"],
    ['--export', 'nbd,id=a,id=b,node-name=n', "Parameter 'id' is given twice"],
    ['--chardev', 'socket,id=a,path=/x,path=/y', "Parameter 'path' is given twice"],
    ['--chardev', 'socket,id=a,path=/x,server,server=off', "Parameter 'server' is given twice"],
    ['--chardev', 'stdio,id=a,backend=null', "Parameter 'backend' is given twice"],
  ])('refuses a doubled parameter by name: %s %s', (option, value, text) => {
    expect(refusal(option, value)).toContain(text);
  });

  it.each([
    ['file,node-name=a,filenam=x', 'filename', "'filenam' is"],
    ['raw,node-name=a,file.driver=file,file.filenam=x', 'file.filename', "'file.filenam' is"],
    ['{"drivr":"file","node-name":"a","filename":"x"}', 'driver', "'drivr' is"],
    ['file,node-name=a,filenam=x,writable=on', 'filename', "'filenam', 'writable' are"],
  ])('names a misspelt parameter beside the one that it should be: %s', (value, missing, stray) => {
    const text = refusal('--blockdev', value);
    expect(text).toContain(`Parameter '${missing}' is missing`);
    expect(text).toContain(`${stray} unexpected`);
  });

  it('refuses stdio in the background', () => {
    expect(refusal('--daemonize', '--chardev', 'stdio,id=c')).toBe(
      '--chardev stdio,id=c: cannot use stdio with -daemonize',
    );
  });

  it('finds descriptors that are to be passed on', () => {
    const { actions } = run(
      ...['--nbd-server', 'addr.type=fd,addr.str=7', '--chardev', 'socket,id=c,fd=5'],
      ...['--nbd-server', 'addr.type=fd,addr.str=named'],
    );
    expect(descriptorsOf(actions)).toEqual([5, 7]);
  });
});

/** What qemu-storage-daemon says, without its name. It ends with an error before it starts anything. */
function qemuSays(args: readonly string[]): string {
  const { stderr } = spawnSync('qemu-storage-daemon', args, { encoding: 'utf8', timeout: 60_000 });
  return stderr.trim().replace(/^qemu-storage-daemon: /, '');
}

describe('refusals are those of qemu-storage-daemon', () => {
  const cases: readonly (readonly string[])[] = [
    ['--foo'],
    ['--foo=1'],
    ['-x'],
    ['foo'],
    ['--blockdev'],
    ['--daemonize=1'],
    ['--daem=1'],
    ['--blockd', 'x'],
    ['--block=x'],
    ['--blockdev', ''],
    ['--blockdev', 'driver=nope'],
    ['--blockdev', 'null-co,foo=1'],
    ['--blockdev', 'null-co,node-name=a,read-zeroes=maybe'],
    ['--blockdev', 'file,node-name=a'],
    ['--blockdev', 'raw,node-name=a,file.driver=file'],
    ['--blockdev', 'raw,node-name=a,file.driver=null-co,file.x=1'],
    ['--blockdev', 'nbd,node-name=a,server.type=foo'],
    ['--blockdev', 'nbd,node-name=a,server.type=unix'],
    ['--blockdev', 'nbd,node-name=a,server=x'],
    ['--blockdev', 'null-co,node-name.x=a'],
    ['--blockdev', "{'driver':'null-co'"],
    ['--blockdev', "{'driver':'null-co','node-name':3}"],
    ['--nbd-server', 'addr.type=foo'],
    ['--nbd-server', 'addr.type=inet'],
    ['--nbd-server', 'addr.type=inet,addr.host=h'],
    ['--nbd-server', 'addr.type=unix,addr.path=/nowhere/x,max-connections=many'],
    ['--export', 'nbd'],
    ['--export', 'nope,id=a,node-name=x'],
    ['--export', 'nbd,id=a'],
    ['--export', 'nbd,id=a,node-name=x,writable=1'],
    ['--monitor', 'mode=control'],
    ['--monitor', 'chardev=a,mode=foo'],
    ['--object', 'foo'],
    ['--object', 'throttle-group'],
    ['--object', 'throttle-group,id=a,x=3'],
    ['--object', 'throttle-group,id=a,limits.iops-total=x'],
    ['--chardev', 'foo,id=b'],
    ['--chardev', 'socket,id=a,path=/tmp/x,foo=1'],
  ];
  it.each(cases.map((args) => [args.join(' '), args] as const))('%s', (_, args) => {
    expect(refusal(...args)).toBe(qemuSays(args));
  });
});
