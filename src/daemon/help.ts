// SPDX-License-Identifier: MIT
/** What `diskferryd --help` prints. */

export const HELP_TEXT = `Usage: diskferryd [options]
Serves disk images over NBD, and moves them while they are in use, under QMP control.

Options that make something are carried out in the order in which they are given, so what an option
refers to comes before it. Values are key=value,... with dotted keys for what is nested, two commas
for one comma, or JSON that starts with {.

  --blockdev [driver=]DRIVER[,node-name=NAME][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,OPTION OF THE DRIVER=VALUE...]
                        add a node. Drivers and their main options:
                          file, host_device  filename=PATH[,locking=on|off|auto]
                          nbd                server.type=inet,server.host=HOST,server.port=PORT
                                             server.type=unix,server.path=PATH
                                             [,export=NAME][,reconnect-delay=SECONDS]
                          raw                file=NODE[,offset=BYTES][,size=BYTES]
                          null-co, null-aio  [size=BYTES][,read-zeroes=on|off]
                          throttle           file=NODE,throttle-group=ID
                          quorum             children.0=NODE,children.1=NODE...,vote-threshold=N
                          qcow2, luks, copy-on-read, preallocate, copy-before-write,
                          compress, snapshot-access, blkdebug, blkverify, blklogwrites

  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT
  --nbd-server addr.type=unix,addr.path=PATH
  --nbd-server addr.type=fd,addr.str=NUMBER
             [,max-connections=N][,handshake-max-seconds=N][,websocket=on|off]
                        listen for NBD clients; port 0 takes a free port

  --export [type=]nbd,id=ID,node-name=NODE[,name=NAME][,description=TEXT]
           [,writable=on|off][,writethrough=on|off]
           [,allocation-depth=on|off][,bitmaps.0=NAME...]
                        export a node (needs --nbd-server)

  --chardev socket,id=ID,path=PATH[,server=on|off][,wait=on|off][,reconnect=SECONDS]
  --chardev socket,id=ID,host=HOST,port=PORT[,server=on|off][,wait=on|off][,websocket=on|off]
  --chardev socket,id=ID,fd=NUMBER[,server=on|off]
  --chardev stdio,id=ID
  --chardev pipe,id=ID,path=PATH
  --chardev file,id=ID,path=PATH[,append=on|off]
  --chardev null,id=ID
             [,logfile=PATH][,logappend=on|off]
                        add a character device, for --monitor

  --monitor [chardev=]ID[,mode=control][,pretty=on|off]
                        speak QMP on a character device

  --object secret,id=ID,file=PATH|data=TEXT[,format=base64][,keyid=ID,iv=TEXT]
  --object throttle-group,id=ID[,limits.bps-total=N][,limits.iops-total=N]...
                        make an object that others refer to

  --blockdev help, --blockdev DRIVER,help, and so for --chardev, --export and --object;
  --nbd-server help, --monitor help
                        list drivers and kinds; list the options of one, with their types

  --daemonize           go to the background and return when everything listens
  --pidfile PATH        write the process ID to a file, removed at the end
  --log-level LEVEL     trace, debug, info (default), warn, error, fatal or silent; logs go to
                        stderr, as text on a terminal, otherwise as JSON, one line each
  -h, --help            print this
  -V, --version         print the version

SIGINT, SIGTERM and SIGHUP end it: requests in flight finish, all is flushed and closed.

Examples:
  Export an image on TCP port 10809, for the Linux kernel, qemu, libnbd and others:
    diskferryd --blockdev file,node-name=disk,filename=disk.img \\
               --nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port=10809 \\
               --export nbd,id=e,node-name=disk,name=disk,writable=on

  Let a manager decide, over a UNIX socket:
    diskferryd --chardev socket,id=qmp,path=/run/diskferryd.qmp,server=on,wait=off \\
               --monitor qmp --pidfile /run/diskferryd.pid --daemonize

  Limit an image to 10 MB a second:
    diskferryd --object throttle-group,id=slow,limits.bps-total=10000000 \\
               --blockdev file,node-name=f,filename=disk.img \\
               --blockdev throttle,node-name=disk,throttle-group=slow,file=f \\
               --nbd-server addr.type=unix,addr.path=/tmp/nbd.sock \\
               --export nbd,id=e,node-name=disk
`;
