// SPDX-License-Identifier: MIT
/**
 * The life of a job, the same for every kind: states and verbs by job-tables.ts, pausing, cancelling,
 * finalizing, dismissing. A kind of job says what it does in `run`, and in `prepare`, `commit`,
 * `abort` and `clean` how its end takes effect.
 */
import { BlockError, toError } from '../base/errors.js';
import type { EdgeParent } from '../block/edge.js';
import { type JobState, type JobVerb, NEXT_STATES, STATES_OF_VERB } from './job-tables.js';
import { JobTransaction } from './job-transaction.js';
import { ProgressMeter } from './progress-meter.js';

export interface JobOptions {
  readonly id: string;
  /** Go from pending to concluded without being asked. Default true. */
  readonly autoFinalize?: boolean;
  /** Vanish when concluded. Default true. */
  readonly autoDismiss?: boolean;
  readonly transaction?: JobTransaction;
}

/** Who wants to know of a job's life: the registry, which passes it on as events. */
export interface JobObserver {
  stateChanged(job: Job): void;
  /** The end has taken effect: success, failure or cancellation; before 'concluded'. */
  finished(job: Job): void;
}

export abstract class Job {
  abstract readonly type: string;
  readonly id: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly transaction: JobTransaction;
  readonly observer: JobObserver;
  /** Work known, done or not: bytes where the kind copies bytes. */
  progressTotal = 0;
  #progressCurrent = 0;
  readonly #meter = new ProgressMeter(() => performance.now());
  /** It has been ready before: coming back from standby is no news. */
  wasReady = false;
  #state: JobState = 'created';
  #error: Error | undefined;
  #cancelRequested = false;
  #forceCancelled = false;
  #pauseCount = 0;
  #userPaused = false;
  #paused = false;
  #sealed = false;
  #wake: (() => void) | undefined;
  #ended: Promise<void> | undefined;
  #concluded = (): void => {};
  /** Fulfilled when its end has taken effect: it is concluded, or gone. Never rejects. */
  readonly concluded: Promise<void>;

  constructor(options: JobOptions, observer: JobObserver) {
    this.id = options.id;
    this.autoFinalize = options.autoFinalize ?? true;
    this.autoDismiss = options.autoDismiss ?? true;
    this.transaction = options.transaction ?? new JobTransaction();
    this.observer = observer;
    this.concluded = new Promise((resolve) => {
      this.#concluded = resolve;
    });
    this.transaction.add(this);
  }

  /** Work done, in the unit of `progressTotal`. */
  get progressCurrent(): number {
    return this.#progressCurrent;
  }

  set progressCurrent(done: number) {
    this.#progressCurrent = done;
    this.#meter.note(done);
  }

  /** Work done a second over the last few seconds; 0 when there was none. */
  get progressRate(): number {
    return this.#meter.rate(this.#progressCurrent);
  }

  /** The work. Calls `pausePoint` between steps; returns when done, or early when `cancelled`. */
  protected abstract run(): Promise<void>;
  /** What can still fail before the end takes effect. */
  protected prepare(): Promise<void> | void {}
  /** The end takes effect; must not fail. */
  protected commit(): Promise<void> | void {}
  /** All is as if the job had never been. */
  protected abort(): Promise<void> | void {}
  /** After commit or abort: lets go of what it holds. */
  protected clean(): Promise<void> | void {}
  /** True when a cancel without force breaks the work off; false when it is a way to complete. */
  protected cancelBreaksOff(): boolean {
    return true;
  }
  /** What `complete` does, for kinds that have it. */
  protected completeRequested?(): void;
  /** The work is to end at once, also where it waits for a peer that is gone. */
  protected brokenOff(): void {}
  /** What is left of the work after a pause that came when `run` had just ended. */
  protected async runOn(): Promise<void> {}
  /** Wakes the work when something it waits for by itself may have changed (cancel, pause, speed). */
  protected wakeUp(): void {}

  /** Whether it is on this job's account that `parent` uses a node. */
  owns(_parent: EdgeParent): boolean {
    return false;
  }

  get state(): JobState {
    return this.#state;
  }

  /** Why it failed, once it has. */
  get error(): Error | undefined {
    return this.#error;
  }

  /** The work shall be broken off, or (`cancelBreaksOff` false) end as it stands. */
  get cancelRequested(): boolean {
    return this.#cancelRequested;
  }

  get cancelled(): boolean {
    return this.#forceCancelled;
  }

  /** Held by the user or a drained section. */
  get paused(): boolean {
    return this.#paused;
  }

  get userPaused(): boolean {
    return this.#userPaused;
  }

  get pauseRequested(): boolean {
    return this.#pauseCount > 0;
  }

  get busy(): boolean {
    return !this.#paused && (this.#state === 'running' || this.#state === 'ready');
  }

  /** Tells that it exists; the registry calls it when it knows the job. */
  announce(): void {
    this.observer.stateChanged(this);
  }

  /** Begins the work; returns at once. */
  start(): void {
    this.setState('running');
    this.#ended = this.#work();
  }

  /** Fulfilled when the work has ended (not yet the transaction); for shut-down and tests. */
  get ended(): Promise<void> {
    return this.#ended ?? Promise.resolve();
  }

  /** @throws BlockError when the verb can't be said in this state */
  checkVerb(verb: JobVerb): void {
    if (STATES_OF_VERB[verb].includes(this.#state)) return;
    throw new BlockError(
      'DF_INVALID',
      `Job '${this.id}' in state '${this.#state}' cannot accept command verb '${verb}'`,
    );
  }

  /** User verb. @throws BlockError in the wrong state, or when paused by the user already */
  pause(): void {
    this.checkVerb('pause');
    if (this.#userPaused) throw new BlockError('DF_INVALID', 'Job is already paused');
    this.#userPaused = true;
    this.hold();
  }

  /** User verb. @throws BlockError when not paused by the user, or in the wrong state */
  resume(): void {
    if (!this.#userPaused)
      throw new BlockError('DF_INVALID', "Can't resume a job that was not paused");
    this.checkVerb('resume');
    this.userResumed();
    this.#userPaused = false;
    this.unhold();
  }

  /** Called when the user resumes; block jobs reset their I/O status. */
  protected userResumed(): void {}

  /** Pauses on the user's behalf: an error policy said stop. */
  protected stopForUser(): void {
    if (this.#userPaused) return;
    this.#userPaused = true;
    this.hold();
  }

  /** One more reason to hold still: a user, a drained section. */
  hold(): void {
    this.#pauseCount++;
    this.wakeUp();
  }

  unhold(): void {
    if (this.#pauseCount === 0) throw new Error(`job '${this.id}': resumed twice`);
    this.#pauseCount--;
    if (this.#pauseCount === 0) this.#wakePaused();
  }

  /** User verb. @throws BlockError in the wrong state */
  cancel(options: { readonly force: boolean }): void {
    this.checkVerb('cancel');
    this.cancelNow(options);
  }

  /** Cancels without asking the table: for transactions and shut-down. */
  cancelNow({ force }: { readonly force: boolean }): void {
    if (this.#sealed || ['aborting', 'concluded', 'null'].includes(this.#state)) return;
    const breaksOff = force || this.cancelBreaksOff();
    this.#cancelRequested = true;
    if (breaksOff) {
      this.#forceCancelled = true;
      this.brokenOff();
    }
    if (this.#userPaused) {
      this.#userPaused = false;
      this.unhold();
    }
    if (this.#state === 'created' || this.#state === 'waiting' || this.#state === 'pending') {
      this.#error ??= cancelledError();
      if (this.transaction.preparing) this.wakeUp();
      else this.transaction.failed(this);
      return;
    }
    this.#wakePaused();
    this.wakeUp();
  }

  /** User verb. @throws BlockError in the wrong state, or where the kind has no `complete` */
  complete(): void {
    this.checkVerb('complete');
    if (this.#cancelRequested || this.completeRequested === undefined) {
      throw new BlockError('DF_INVALID', `The active block job '${this.id}' cannot be completed`);
    }
    this.completeRequested();
  }

  /** User verb: lets a pending job (and its transaction) take effect. @throws BlockError */
  finalize(): Promise<void> {
    this.checkVerb('finalize');
    if (this.transaction.preparing) {
      throw new BlockError('DF_INVALID', `Job '${this.id}' is being finalized already`);
    }
    return this.transaction.finalize();
  }

  /** User verb: forgets a concluded job. @throws BlockError in the wrong state */
  dismiss(): void {
    this.checkVerb('dismiss');
    this.setState('null');
  }

  /** @throws when the table does not allow it: a bug */
  setState(next: JobState): void {
    if (!NEXT_STATES[this.#state].includes(next)) {
      throw new Error(`job '${this.id}': ${this.#state} can't become ${next}`);
    }
    this.#state = next;
    this.observer.stateChanged(this);
    if (next === 'ready') this.wasReady = true;
  }

  /** True when the work must stop between two steps, to be paused or to end. */
  get shouldYield(): boolean {
    return this.#pauseCount > 0 || this.#cancelRequested;
  }

  /** Waits while the job is paused. The work has nothing in flight when it calls this. */
  protected async pausePoint(): Promise<void> {
    while (this.#pauseCount > 0 && !this.#forceCancelled) {
      const back = this.#state;
      this.#paused = true;
      this.setState(back === 'ready' ? 'standby' : 'paused');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#paused = false;
      this.setState(back);
    }
  }

  /** Success takes effect from here on, and nothing can cancel it. */
  seal(): void {
    this.#sealed = true;
  }

  /** Called by the transaction: the steps by which success takes effect. */
  async takeEffect(step: 'prepare' | 'commit'): Promise<void> {
    if (step === 'prepare') return this.prepare();
    try {
      await this.commit();
      await this.clean();
    } catch (error) {
      // A bug; but a job that never ends would be a second one.
      this.#error ??= toError(error);
    }
    this.#conclude();
  }

  /** Called by the transaction: this job's work is undone. */
  async undo(): Promise<void> {
    this.setState('aborting');
    this.#error ??= cancelledError();
    try {
      await this.abort();
      await this.clean();
    } catch (error) {
      this.#error = toError(error);
    }
    this.#conclude();
  }

  /** Made, but not to be started after all: all is as if it had never been. Never rejects. */
  async abandon(): Promise<void> {
    if (this.#state !== 'created') return;
    this.transaction.remove(this);
    this.setState('aborting');
    try {
      await this.abort();
      await this.clean();
    } catch (error) {
      this.#error = toError(error);
    }
    this.setState('concluded');
    this.setState('null');
    this.#concluded();
  }

  /** Called by the transaction when a prepare failed. */
  fail(error: unknown): void {
    this.#error ??= toError(error);
  }

  #conclude(): void {
    this.observer.finished(this);
    this.setState('concluded');
    if (this.autoDismiss) this.setState('null');
    this.#concluded();
  }

  async #work(): Promise<void> {
    try {
      await this.run();
      // Told to pause, or stopped by an error, at the very moment at which the work ended.
      while (this.pauseRequested && !this.#forceCancelled) {
        await this.pausePoint();
        await this.runOn();
      }
      if (this.#forceCancelled) this.#error ??= cancelledError();
    } catch (error) {
      this.#error = this.#forceCancelled ? cancelledError() : toError(error);
    }
    if (this.#error !== undefined) this.transaction.failed(this);
    else {
      this.setState('waiting');
      this.transaction.succeeded();
    }
  }

  #wakePaused(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}

/** What `query-jobs` and events show of a cancelled job, in QEMU's words. */
export function cancelledError(): BlockError {
  return new BlockError('DF_CANCELLED', 'Operation canceled');
}
