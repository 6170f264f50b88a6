// SPDX-License-Identifier: MIT
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { QmpClient } from '../../../src/qmp/client.js';
import { testScope } from '../../support/temp.js';

const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\n';

/** A monitor that greets and gives the answers, one for each command, whatever it is. */
async function monitor(answers: readonly string[]) {
  const scope = testScope();
  const path = join(await scope.tempDir(), 'qmp');
  const gone: Promise<void>[] = [];
  const server = createServer((socket: Socket) => {
    const left = [...answers];
    gone.push(new Promise((resolve) => socket.once('close', () => resolve())));
    socket.on('error', () => undefined);
    socket.on('data', () => socket.write(`${left.shift()}\n`));
    socket.write(GREETING);
  });
  scope.defer(() => server.close());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return { path, gone };
}

test('gives what a command returns', async () => {
  const { path } = await monitor(['{"return": {}, "id": 1}', '{"return": [7], "id": 2}']);
  const client = await QmpClient.connect({ path });
  expect(await client.execute('query-jobs')).toEqual([7]);
  client.close();
});

test('closes the connection of a monitor that refuses the negotiation', async () => {
  const refusal = '{"error": {"class": "GenericError", "desc": "no"}, "id": 1}';
  const { path, gone } = await monitor([refusal]);
  await expect(QmpClient.connect({ path })).rejects.toThrow('no');
  await gone[0];
});

test.each([
  ['null', '{"error": null, "id": 2}'],
  ['without a text', '{"error": {"class": "GenericError"}, "id": 2}'],
])('an error that is %s is no QMP, and ends the connection', async (_what, answer) => {
  const { path, gone } = await monitor(['{"return": {}, "id": 1}', answer]);
  const client = await QmpClient.connect({ path });
  await expect(client.execute('query-jobs')).rejects.toMatchObject({
    code: 'DF_DISCONNECTED',
    cause: { code: 'DF_PROTOCOL' },
  });
  await gone[0];
});

test('a peer that is no monitor ends the connection', async () => {
  const { path, gone } = await monitor(['{"return": {}, "id": 1}', 'SSH-2.0']);
  const client = await QmpClient.connect({ path });
  await expect(client.execute('query-jobs')).rejects.toMatchObject({ code: 'DF_DISCONNECTED' });
  await gone[0];
});
