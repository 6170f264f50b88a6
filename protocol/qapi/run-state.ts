// SPDX-License-Identifier: MIT
/** Whether clients are served. @see QEMU's qapi/run-state.json, misc.json */
import { bool, defineCommand, defineEvent, enumeration, required, struct } from './define.js';

export const RunState = enumeration('RunState', {
  doc: 'States of the daemon.',
  values: {
    running: 'requests of clients are served',
    paused: 'they wait: the command stop has been given',
  },
});

export const StatusInfo = struct('StatusInfo', {
  doc: 'The state of the daemon.',
  members: {
    running: required(bool, 'requests of clients are served'),
    status: required(RunState, 'the state'),
  },
});

export const QUERY_STATUS = defineCommand({
  name: 'query-status',
  doc: 'Tells whether requests of clients are served.',
  result: StatusInfo,
});

export const STOP = defineCommand({
  name: 'stop',
  doc: 'Holds requests of clients back; what is in flight completes first.',
});

export const CONT = defineCommand({
  name: 'cont',
  doc: 'Lets requests of clients go on.',
});

export const STOP_EVENT = defineEvent({
  name: 'STOP',
  doc: 'Requests of clients are held back from now on.',
});

export const RESUME_EVENT = defineEvent({
  name: 'RESUME',
  doc: 'Requests of clients go on.',
});

export const RUN_STATE_COMMANDS = [QUERY_STATUS, STOP, CONT] as const;

export const RUN_STATE_EVENTS = [STOP_EVENT, RESUME_EVENT] as const;
