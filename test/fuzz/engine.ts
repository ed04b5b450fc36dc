// A small mutation fuzzer: valid inputs of a parser are changed again and again, inputs whose outcome is new are kept
// to be changed further, and whatever breaks the target's promise is shrunk and printed so that it can be run again.
// Everything follows from the seed.
import { performance } from "node:perf_hooks";
import { setImmediate as nextTurn } from "node:timers/promises";
import { type Format, mutate } from "./mutate.ts";
import { hashOf, Random } from "./random.ts";

/** One parser or state machine, fresh or in the middle of its life. */
export interface Instance {
  /**
   * Takes one input.
   *
   * @param random drawn from the input alone
   * @returns a word for what happened (an error code, the kinds of frames): new words make an input worth keeping
   * @throws when the target breaks a promise; expected errors are outcomes
   */
  run(input: Uint8Array, random: Random): string | Promise<string>;
  /** It ended (as a closed session does): the next input wants a fresh one. */
  readonly isSpent?: boolean;
  end?(): void | Promise<void>;
}

export interface Target {
  name: string;
  format: Format;
  /** Valid inputs. */
  seeds: readonly Uint8Array[];
  /** Words of the format, put in here and there. */
  dictionary?: readonly Uint8Array[];
  /** Default 4,096. */
  maxBytes?: number;
  /** Makes checksums, lengths and macs right again, in half of the inputs, so that the code behind them is reached. */
  repair?(input: Uint8Array, random: Random): Uint8Array;
  open(): Instance | Promise<Instance>;
  /** Default 1: each input meets a fresh instance. */
  inputsPerInstance?: number;
  /** Inputs of the short run in `npm test`; default 3,000. */
  shortInputs?: number;
}

export interface Failure {
  target: string;
  message: string;
  /** Inputs that one fresh instance took, the last of which failed. */
  inputs: Uint8Array[];
}

export interface Report {
  target: string;
  seed: number;
  inputs: number;
  seconds: number;
  /** User and system time: on a busy machine the only measure of how fast it was. */
  cpuSeconds: number;
  /** How often each outcome came. */
  outcomes: Map<string, number>;
  failures: Failure[];
}

export interface FuzzOptions {
  seed: number;
  inputs: number;
  /** Told before each input, for a watchdog that must name what never came back. */
  onInput?: (input: Uint8Array) => void;
  /** Default 120: no more is started then. */
  maxSeconds?: number;
}

/**
 * An input of a few KiB that keeps a parser busy for this long costs its sender much less than us. Who is slow is run
 * again, since the machine may have been busy.
 */
const MAX_INPUT_MS = 50;
/** Where files and timers are waited for. */
const MAX_AWAITED_MS = 5_000;
const SLOW_RUNS = 4;
const MAX_CORPUS = 1_024;
const MAX_OUTCOMES = 4_096;
const MAX_FAILURES = 8;
const SHRINK_RUNS = 3_000;
const SHRINK_MS = 20_000;
const DEFAULT_MAX_BYTES = 4_096;

/** Feeds `inputs` changed inputs to a target. Never rejects because of what it finds. */
export async function fuzz(target: Target, options: FuzzOptions): Promise<Report> {
  const random = new Random(options.seed ^ hashOf(new TextEncoder().encode(target.name)));
  const corpus: Uint8Array[] = target.seeds.map((seed) => Uint8Array.from(seed)); // of a Buffer, slice() would be a view
  const outcomes = new Map<string, number>();
  const failures = new Map<string, Failure>();
  const { dictionary = [], maxBytes = DEFAULT_MAX_BYTES, inputsPerInstance = 1 } = target;
  const started = performance.now();
  const cpuAtStart = process.cpuUsage();
  const deadline = started + (options.maxSeconds ?? Number.POSITIVE_INFINITY) * 1_000;

  let instance: Instance | undefined;
  let history: Uint8Array[] = [];
  let done = 0;
  for (; done < options.inputs; done++) {
    if (done % 256 === 0) {
      if (performance.now() > deadline) break;
      await nextTurn(); // for streams, which tell later what they did
    }
    // Valid inputs come first, and now and then again: state machines need them in between.
    const isSeed = done < target.seeds.length || random.chance(0.05);
    let input: Uint8Array = done < target.seeds.length ? corpus[done] : random.pick(corpus);
    if (!isSeed) {
      input = mutate(input, random.pick(corpus), random, { format: target.format, maxBytes, dictionary });
      if (target.repair && random.chance(0.5)) input = target.repair(input, random);
    }
    options.onInput?.(input);
    if (!instance) {
      const opened = target.open();
      instance = opened instanceof Promise ? await opened : opened;
      history = [];
    }
    history.push(input);
    try {
      const ran = runTimed(instance, input);
      let outcome = typeof ran === "string" ? ran : await ran;
      if (outcome === SLOW) outcome = await runAgain(target, history);
      const count = outcomes.get(outcome);
      if (count !== undefined) outcomes.set(outcome, count + 1);
      else if (outcomes.size < MAX_OUTCOMES) {
        outcomes.set(outcome, 1);
        if (!isSeed && corpus.length < MAX_CORPUS) corpus.push(input);
      }
    } catch (error) {
      const key = signatureOf(error);
      if (!failures.has(key))
        failures.set(key, { target: target.name, message: describe(error), inputs: [...history] });
      instance = await closed(instance);
      if (failures.size >= MAX_FAILURES) break;
      continue;
    }
    if (history.length >= inputsPerInstance || instance.isSpent) instance = await closed(instance);
  }
  if (instance) await closed(instance);
  const seconds = (performance.now() - started) / 1_000;
  const { user, system } = process.cpuUsage(cpuAtStart);
  for (const failure of failures.values()) await shrink(target, failure, options.onInput);
  return {
    target: target.name,
    seed: options.seed,
    inputs: done,
    seconds,
    cpuSeconds: (user + system) / 1e6,
    outcomes,
    failures: [...failures.values()],
  };
}

const SLOW = "slow";

/** @returns the outcome, or SLOW when it took too long */
function runTimed(instance: Instance, input: Uint8Array): string | Promise<string> {
  const startedAt = performance.now();
  const outcome = instance.run(input, new Random(hashOf(input)));
  if (typeof outcome === "string") return performance.now() - startedAt > MAX_INPUT_MS ? SLOW : outcome;
  return outcome.then((word) => (performance.now() - startedAt > MAX_AWAITED_MS ? SLOW : word));
}

/** Something was slow: only what is slow each time is. */
async function runAgain(target: Target, inputs: readonly Uint8Array[]): Promise<string> {
  for (let i = 0; i < SLOW_RUNS; i++) {
    const error = await replay(target, inputs);
    if (error === undefined) return "slow once";
    if (!(error instanceof SlowError)) throw error;
  }
  throw new SlowError();
}

class SlowError extends Error {
  constructor() {
    super(`an input took longer than ${MAX_INPUT_MS} ms`);
  }
}

async function closed(instance: Instance): Promise<undefined> {
  const ended = instance.end?.();
  if (ended instanceof Promise) await ended;
  return undefined;
}

/** Runs inputs against one fresh instance. @returns what it throws, if it does */
export async function replay(target: Target, inputs: readonly Uint8Array[]): Promise<unknown> {
  const instance = await target.open();
  try {
    let last = "";
    for (const input of inputs) {
      last = await runTimed(instance, input);
      if (instance.isSpent) break;
    }
    return last === SLOW ? new SlowError() : undefined;
  } catch (error) {
    return error;
  } finally {
    await closed(instance);
  }
}

/** Leaves away inputs, then bytes, as long as it fails in the same way. */
async function shrink(target: Target, failure: Failure, onInput: FuzzOptions["onInput"]): Promise<void> {
  let runs = 0;
  const untilAt = performance.now() + SHRINK_MS;
  const wanted = failure.message.split("\n")[0];
  const stillFails = async (inputs: Uint8Array[]): Promise<boolean> => {
    if (++runs > SHRINK_RUNS || performance.now() > untilAt) return false;
    onInput?.(inputs[inputs.length - 1]);
    const error = await replay(target, inputs);
    return error !== undefined && describe(error).split("\n")[0].slice(0, 40) === wanted.slice(0, 40);
  };
  if (!(await stillFails(failure.inputs))) {
    failure.message = `not seen again in a fresh instance: ${failure.message}`;
    return;
  }
  let inputs = failure.inputs;
  for (let step = inputs.length >> 1; step >= 1; step = step >> 1)
    for (let at = 0; at + step <= inputs.length && inputs.length > step; ) {
      const fewer = inputs.toSpliced(at, step);
      if (await stillFails(fewer)) inputs = fewer;
      else at += step;
    }
  for (let i = inputs.length - 1; i >= 0; i--)
    for (let step = Math.max(1, inputs[i].length >> 1); step >= 1; step = step >> 1)
      for (let at = 0; at + step <= inputs[i].length; ) {
        const input = inputs[i];
        const shorter = new Uint8Array(input.length - step);
        shorter.set(input.subarray(0, at));
        shorter.set(input.subarray(at + step), at);
        const fewer = inputs.with(i, shorter);
        if (await stillFails(fewer)) inputs = fewer;
        else at += step;
      }
  failure.inputs = inputs;
}

const describe = (error: unknown): string =>
  error instanceof Error ? (error.stack ?? String(error)) : String(error);

/** Failures at the same place are one failure. */
function signatureOf(error: unknown): string {
  const lines = describe(error).split("\n");
  const places = lines
    .filter((line) => line.trimStart().startsWith("at ") && !line.includes("node:"))
    .slice(0, 2);
  return `${error instanceof Error ? error.name : typeof error}\n${places.join("\n")}`;
}

/** One line that runs a failure again. */
export function reproduction({ target, inputs }: Failure): string {
  const hex = inputs.map((input) => Buffer.from(input).toString("hex") || "-").join(",");
  return `node --import tsx test/soak/fuzz.ts --target ${target} --replay ${hex}`;
}

/** Runs `action`. @returns "ok", or the code of an error of one of `classes` @throws any other error */
export function outcomeOf(
  action: () => string | undefined,
  ...classes: readonly (abstract new (
    ...args: never[]
  ) => Error)[]
): string {
  try {
    return action() ?? "ok";
  } catch (error) {
    if (!(error instanceof Error) || !classes.some((known) => error instanceof known)) throw error;
    return "code" in error ? String(error.code) : error.name;
  }
}
