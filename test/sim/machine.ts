// A machine has clocks and may sleep; a process on it has timers and randomness, and may die.
import type { Runtime, Timer } from "../../mesh/node/runtime.ts";
import type { Random } from "./random.ts";
import type { World } from "./world.ts";

/** Node takes a longer timer for one of 1 ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;
const EPOCH_MS = Date.UTC(2026, 0, 1);

export class Machine {
  readonly name: string;
  readonly world: World;
  /** Of sleep: does the monotonic clock go on? */
  readonly clockCountsSleep: boolean;
  /** Connections that hear when it wakes. */
  readonly onWake = new Set<() => void>();
  #monotonicOffsetMs: number;
  #wallOffsetMs: number;
  #bootOffsetMs: number;
  #asleepSince: number | undefined;
  #parked: (() => void)[] = [];

  constructor(world: World, name: string, random: Random, { wallSkewMs = 0, clockCountsSleep = false } = {}) {
    this.world = world;
    this.name = name;
    this.clockCountsSleep = clockCountsSleep;
    this.#monotonicOffsetMs = random.between(0, 1e7);
    this.#bootOffsetMs = this.#monotonicOffsetMs;
    this.#wallOffsetMs = EPOCH_MS + wallSkewMs;
  }

  get isAsleep(): boolean {
    return this.#asleepSince !== undefined;
  }

  nowMs(): number {
    const at = this.clockCountsSleep ? this.world.now : (this.#asleepSince ?? this.world.now);
    return at + this.#monotonicOffsetMs;
  }

  wallClockMs(): number {
    return Math.floor(this.world.now + this.#wallOffsetMs);
  }

  uptimeMs(): number {
    return this.world.now + this.#bootOffsetMs;
  }

  setWallClock(byMs: number): void {
    this.#wallOffsetMs += byMs;
  }

  sleep(): void {
    this.#asleepSince ??= this.world.now;
  }

  wake(): void {
    if (this.#asleepSince === undefined) return;
    if (!this.clockCountsSleep) this.#monotonicOffsetMs -= this.world.now - this.#asleepSince;
    this.#asleepSince = undefined;
    for (const run of this.#parked.splice(0)) this.world.after(0, run);
    for (const wake of [...this.onWake]) wake();
  }

  /** Now, or when it is awake. */
  whenAwake(run: () => void): void {
    if (this.isAsleep) this.#parked.push(run);
    else run();
  }
}

interface Armed {
  dueAt: number;
  everyMs: number | undefined;
  fn: () => void;
  cancel: () => void;
}

/** What a program sees of its machine. Dead, it does nothing any more. */
export class Process implements Runtime {
  readonly machine: Machine;
  readonly name: string;
  /** Called when it dies: the system closes what it had open. */
  readonly onDeath = new Set<() => void>();
  #isDead = false;
  #timers = new Set<Armed>();
  #work = new Set<Armed>();
  #random: Random;
  #secrets: Random;

  constructor(machine: Machine, name: string, random: Random) {
    this.machine = machine;
    this.name = name;
    this.#random = random.fork("jitter");
    this.#secrets = random.fork("secrets");
  }

  get isDead(): boolean {
    return this.#isDead;
  }

  get armedTimers(): number {
    return this.#timers.size;
  }

  kill(): void {
    if (this.#isDead) return;
    this.#isDead = true;
    for (const timer of [...this.#timers, ...this.#work]) this.clearTimer(timer);
    for (const tell of [...this.onDeath]) tell();
    this.onDeath.clear();
  }

  nowMs(): number {
    return this.machine.nowMs();
  }

  wallClockMs(): number {
    return this.machine.wallClockMs();
  }

  uptimeMs(): number {
    return this.machine.uptimeMs();
  }

  setTimer(fn: () => void, ms: number): Timer {
    return this.#arm(fn, ms, false);
  }

  setIdleTimer(fn: () => void, ms: number): Timer {
    return this.#arm(fn, ms, false);
  }

  repeat(fn: () => void, ms: number): Timer {
    return this.#arm(fn, ms, true);
  }

  clearTimer(timer: Timer | undefined): void {
    if (!timer) return;
    (timer as Armed).cancel();
    this.#timers.delete(timer as Armed);
    this.#work.delete(timer as Armed);
  }

  /** As setTimer, for what the simulation itself wants of the process: it does not count as armed. */
  setWorkTimer(fn: () => void, ms: number): void {
    this.#arm(fn, ms, false, this.#work);
  }

  randomBytes(count: number): Uint8Array {
    return this.#secrets.bytes(count);
  }

  random(): number {
    return this.#random.float();
  }

  #arm(fn: () => void, ms: number, isRepeated: boolean, set = this.#timers): Timer {
    const waitMs = ms >= 1 && ms <= MAX_TIMER_MS ? ms : 1;
    const timer: Armed = {
      dueAt: this.nowMs() + waitMs,
      everyMs: isRepeated ? waitMs : undefined,
      fn,
      cancel: () => undefined,
    };
    if (this.#isDead) return timer;
    set.add(timer);
    this.#schedule(timer, waitMs);
    return timer;
  }

  #schedule(timer: Armed, waitMs: number): void {
    timer.cancel = this.machine.world.after(waitMs, () => this.machine.whenAwake(() => this.#fire(timer)));
  }

  #fire(timer: Armed): void {
    if (this.#isDead || !(this.#timers.has(timer) || this.#work.has(timer))) return;
    const leftMs = timer.dueAt - this.nowMs();
    // Its clock stood still meanwhile.
    if (leftMs > 0.001) return this.#schedule(timer, leftMs);
    if (timer.everyMs === undefined) {
      this.#timers.delete(timer);
      this.#work.delete(timer);
    } else {
      timer.dueAt = this.nowMs() + timer.everyMs;
      this.#schedule(timer, timer.everyMs);
    }
    timer.fn();
  }
}
