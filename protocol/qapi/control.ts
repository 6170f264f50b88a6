// SPDX-License-Identifier: MIT
/** The monitor itself. @see QEMU's qapi/control.json */
import {
  array,
  bool,
  defineCommand,
  enumeration,
  int,
  optional,
  required,
  str,
  struct,
} from './define.js';

export const QMPCapability = enumeration('QMPCapability', {
  doc: 'Abilities that a client may ask for at the start of a session.',
  values: { oob: 'commands out of band, with `exec-oob`' },
});

export const VersionTriple = struct('VersionTriple', {
  doc: 'A version number in three parts.',
  members: {
    major: required(int, 'first part'),
    minor: required(int, 'second part'),
    micro: required(int, 'third part'),
  },
});

export const VersionInfo = struct('VersionInfo', {
  doc: 'What runs here.',
  members: {
    qemu: required(VersionTriple, 'the QEMU release whose QMP is spoken'),
    package: required(str, 'name and version of this program'),
  },
});

export const CommandInfo = struct('CommandInfo', {
  doc: 'A command.',
  members: { name: required(str, 'its name') },
});

export const MonitorMode = enumeration('MonitorMode', {
  doc: 'What a monitor speaks.',
  values: { control: 'QMP' },
});

/** The argument of `--monitor`; no command takes it. */
export const MonitorOptions = struct('MonitorOptions', {
  doc: 'A monitor to be created.',
  members: {
    id: optional(str, 'name of the monitor'),
    mode: optional(MonitorMode, 'what it speaks', { default: 'control' }),
    pretty: optional(bool, 'indent answers and events', { default: 'false' }),
    chardev: required(str, 'the character device that it talks through'),
  },
});

export const QMP_CAPABILITIES = defineCommand({
  name: 'qmp_capabilities',
  doc: 'Ends the negotiation at the start of a session; all other commands work from then on.',
  arguments: {
    enable: optional(array(QMPCapability), 'capabilities to switch on; must have been offered', {
      default: 'none',
    }),
  },
});

export const QUERY_VERSION = defineCommand({
  name: 'query-version',
  doc: 'Tells what runs here.',
  result: VersionInfo,
  oob: true,
});

export const QUERY_COMMANDS = defineCommand({
  name: 'query-commands',
  doc: 'Lists the commands that work in the present state of the session.',
  result: array(CommandInfo),
  oob: true,
});

export const QUIT = defineCommand({
  name: 'quit',
  doc: 'Ends the daemon: jobs and exports first, with their events, then everything is flushed and closed.',
});

export const CONTROL_COMMANDS = [QMP_CAPABILITIES, QUERY_VERSION, QUERY_COMMANDS, QUIT] as const;
