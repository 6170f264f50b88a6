// SPDX-License-Identifier: MIT
import { describe, expect, test } from 'vitest';
import { parseChardevOption } from '../../../src/qmp/transport/chardev-option.js';

const unix = (path: string) => ({ type: 'unix', data: { path } });

describe('--chardev', () => {
  test.each<[string, unknown]>([
    [
      'socket,id=m,path=/a,server=on,wait=off',
      { type: 'socket', data: { addr: unix('/a'), server: true, wait: false } },
    ],
    [
      'socket,id=m,path=/a,,b,server,nowait',
      { type: 'socket', data: { addr: unix('/a,b'), server: true, wait: false } },
    ],
    [
      'socket,id=m,path=/a,server=on',
      { type: 'socket', data: { addr: unix('/a'), server: true, wait: true } },
    ],
    [
      'backend=socket,id=m,path=/a,reconnect=5',
      { type: 'socket', data: { addr: unix('/a'), server: false, reconnect: 5 } },
    ],
    [
      'socket,id=m,host=::1,port=5000,ipv6=on,server=on,wait=off,nodelay=on,websocket=on',
      {
        type: 'socket',
        data: {
          addr: { type: 'inet', data: { host: '::1', port: '5000', ipv6: true } },
          server: true,
          wait: false,
          nodelay: true,
          websocket: true,
        },
      },
    ],
    [
      'socket,id=m,fd=7,server=on,wait=off',
      {
        type: 'socket',
        data: { addr: { type: 'fd', data: { str: '7' } }, server: true, wait: false },
      },
    ],
    ['stdio,id=m', { type: 'stdio', data: {} }],
    [
      'null,id=m,logfile=/l,logappend=on',
      { type: 'null', data: { logfile: '/l', logappend: true } },
    ],
    ['pipe,id=m,path=/p', { type: 'pipe', data: { device: '/p' } }],
    ['file,id=m,path=/f,append=on', { type: 'file', data: { out: '/f', append: true } }],
  ])('%s', (text, backend) => {
    expect(parseChardevOption(text)).toEqual({ id: 'm', backend });
  });

  test.each([
    ['socket,path=/a', 'chardev: no id specified'],
    ['id=m', 'chardev: "m" missing backend'],
    ['serial,id=m', "'serial' is not a valid char driver name"],
    ['socket,id=m', 'chardev: socket: no port given'],
    ['socket,id=m,host=a', 'chardev: socket: no port given'],
    ['socket,id=m,path=/a,host=b', "None or one of 'path', 'fd' or 'host' option required."],
    ['socket,id=m,path=/a,colour=red', "Invalid parameter 'colour'"],
    ['socket,id=m,path=/a,colour', "Invalid parameter 'colour'"],
    ['socket,id=m,path=/a,server=maybe', "Parameter 'server' expects 'on' or 'off'"],
    ['socket,id=m,path=/a,reconnect=x', "Parameter 'reconnect' expects a number"],
    ['socket,id=m,path=/a,delay=on,nodelay=on', "'delay' and 'nodelay' are mutually exclusive"],
    ['file,id=m', 'chardev: file: no filename given'],
    ['null,id=m,path=/x', "Invalid parameter 'path'"],
  ])('%s: %s', (text, why) => {
    expect(() => parseChardevOption(text)).toThrow(why);
  });
});
