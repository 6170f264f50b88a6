// SPDX-License-Identifier: MIT
import { afterEach, describe, expect, it, vi } from 'vitest';
import { MonitorSide } from '../../../src/cli/monitor-side.js';

afterEach(() => {
  vi.useRealTimers();
});

/** A client that answers as told; what has no answer waits until `close`. */
function fakeClient(answers: Readonly<Record<string, unknown>>) {
  const hangUps: (() => void)[] = [];
  const asked: string[] = [];
  const execute = (command: string): Promise<never> => {
    asked.push(command);
    const answer = answers[command];
    if (answer instanceof Error) return Promise.reject(answer);
    if (command in answers) return Promise.resolve(answer as never);
    return new Promise((_resolve, reject) => {
      hangUps.push(() => reject(new Error('the connection to the monitor ended')));
    });
  };
  const close = vi.fn(() => {
    for (const hangUp of hangUps) hangUp();
  });
  return { client: { execute, close }, asked };
}

describe('a daemon at one end of a migration', () => {
  it('is named where it refuses something', async () => {
    const { client } = fakeClient({ stop: new Error('not now') });
    const error = await new MonitorSide(client, 'the source').run('stop').catch((e: unknown) => e);
    expect(error).toMatchObject({
      message: 'the source: stop failed',
      cause: { message: 'not now' },
    });
  });

  it('is given up when it has not answered for a minute, and not before', async () => {
    vi.useFakeTimers();
    const { client } = fakeClient({});
    const answer = new MonitorSide(client, 'the target').run('transaction');
    const failed = expect(answer).rejects.toThrow('the target: has not answered for 60 s');
    await vi.advanceTimersByTimeAsync(59_000);
    expect(client.close).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(1000);
    expect(client.close).toHaveBeenCalledTimes(1);
    await failed;
  });

  it('takes back what was noted, the last first, whatever fails; each once', async () => {
    const { client, asked } = fakeClient({ a: 1, b: new Error('gone'), c: 1 });
    const side = new MonitorSide(client, 'the target');
    for (const command of ['a', 'b', 'c']) side.later(() => side.run(command));
    await side.takeBack();
    await side.takeBack();
    expect(asked).toEqual(['c', 'b', 'a']);
    side.later(() => side.run('a'));
    side.forget();
    await side.takeBack();
    expect(asked.length).toBe(3);
  });

  it('shows the bitmaps that have a name', async () => {
    const bitmap = { granularity: 4096, count: 0, recording: true, persistent: false, busy: false };
    const shown = { 'node-name': 'disk', image: { 'virtual-size': 512 } };
    const nodes = [{ ...shown, 'dirty-bitmaps': [bitmap, { ...bitmap, name: 'b' }] }];
    const { client } = fakeClient({ 'query-named-block-nodes': nodes });
    const side = new MonitorSide(client, 'the target');
    expect(await side.node('disk')).toEqual({
      size: 512,
      bitmaps: [{ ...bitmap, name: 'b', inconsistent: false }],
    });
    await expect(side.node('other')).rejects.toThrow("the target has no node 'other'");
  });
});
