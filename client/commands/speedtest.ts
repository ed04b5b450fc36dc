import { once } from "node:events";
import type { Duplex } from "node:stream";
import type { Command } from "commander";
import { Option } from "commander";
import { encodeMetadata, SPEEDTEST_SERVICE } from "../../mesh/wire/forward.ts";
import { apiOf } from "../context.ts";
import { durationMsIn } from "../duration.ts";
import { CliError, EXIT } from "../errors.ts";
import { readAnswer } from "../forward/answer.ts";
import { outputOption, printJson, say } from "../output.ts";
import { onPresses } from "../presses.ts";
import { reachWorkspace, startMeshFor } from "../reach.ts";
import { formatInterval, HEADING, type Interval, ThroughputMeter, toJson } from "../speedtest.ts";
import { printable } from "../text.ts";

interface SpeedtestOptions {
  time: string;
  direction: "up" | "down";
  direct?: boolean;
  output: string;
}

/** What the agent allows. */
const MIN_DURATION_MS = 100;
const MAX_DURATION_MS = 60_000;
/** As large as the stream takes at once. */
const CHUNK_BYTES = 64 * 1024;
/** A connection that stalls is waited for, but a test is not worth more. */
const STALL_MS = 30_000;

export function register(program: Command): void {
  program
    .command("speedtest")
    .argument("<workspace>", "name, or owner/name")
    .description("Measure the throughput to a workspace")
    .option("-t, --time <duration>", "how long to measure", "5s")
    .addOption(new Option("--duration <duration>", "the same as --time").hideHelp())
    .addOption(
      new Option("--direction <direction>", "down: from the workspace; up: to it")
        .choices(["up", "down"])
        .default("down"),
    )
    .option("-d, --direct", "insist on a direct connection")
    .addOption(outputOption("text", "json"))
    .addHelpText(
      "after",
      `
Examples:
  coder speedtest dev
  coder speedtest dev --direction up -t 10s
  coder speedtest dev -o json`,
    )
    .action(
      async (workspace: string, options: SpeedtestOptions & { duration?: string }, command: Command) => {
        process.exitCode = await speedtest(
          workspace,
          { ...options, time: options.duration ?? options.time },
          command,
        );
      },
    );
}

async function speedtest(text: string, options: SpeedtestOptions, command: Command): Promise<number> {
  const durationMs = durationMsIn(options.time, "--time", MIN_DURATION_MS, MAX_DURATION_MS);
  if (options.direct)
    throw new CliError(
      "ERR_NO_DIRECT_PATH",
      "there are no direct connections yet: all traffic goes through a relay",
      {
        hint: "Leave --direct out to measure that.",
      },
    );
  const { direction } = options;
  const isText = options.output === "text";
  const api = apiOf(command);
  const mesh = startMeshFor(api, text);
  const interrupted = new AbortController();
  const release = onPresses(["SIGINT", "SIGTERM"], () => {
    interrupted.abort(new CliError("ERR_INTERRUPTED", "interrupted", { exitCode: EXIT.interrupted }));
  });
  const { signal } = interrupted;
  let stream: Duplex | undefined;
  try {
    const { connection, name } = await reachWorkspace(api, mesh, text, { autostart: false, signal });
    const { via, rttMs } = await connection.ping();
    if (isText)
      say(
        `${direction === "down" ? "From" : "To"} ${name} ${via}, round trip ${rttMs.toFixed(2)} ms, for ${options.time}`,
      );
    const metadata = encodeMetadata({ v: 1, direction, durationMs: Math.round(durationMs) });
    stream = await connection.dial(SPEEDTEST_SERVICE, metadata, signal);
    await readAnswer(stream, "the speed test", { signal });
    if (isText) process.stdout.write(`${HEADING}\n`);
    const intervals: Interval[] = [];
    const onInterval = (interval: Interval) => {
      intervals.push(interval);
      if (isText) process.stdout.write(`${formatInterval(interval)}\n`);
    };
    const measure = direction === "down" ? receive : send;
    const total = await measure(stream, durationMs, onInterval, signal);
    const after = await connection.ping().catch(() => undefined);
    if (isText) {
      process.stdout.write(`${"-".repeat(HEADING.length + 8)}\n${formatInterval(total)}\n`);
      if (after) say(`Round trip afterwards ${after.rttMs.toFixed(2)} ms`);
    } else
      printJson({
        overall: toJson(total),
        intervals: intervals.map(toJson),
        direction,
        via: printable(via),
        rtt_ms: rttMs,
      });
    return 0;
  } catch (error) {
    if (signal.aborted) return EXIT.interrupted;
    throw error;
  } finally {
    release();
    stream?.destroy();
    await mesh.close();
    api.close();
  }
}

type OnInterval = (interval: Interval) => void;

const cutOff = (cause?: unknown) =>
  new CliError("ERR_SPEEDTEST", "the connection ended before the test did", {
    cause,
    hint: "Try again; `coder show` says whether the workspace still runs.",
  });

/** Runs `act` beside a meter that reports intervals. Ends by itself when nothing has moved for STALL_MS. */
async function metered(
  stream: Duplex,
  onInterval: OnInterval,
  signal: AbortSignal,
  act: (meter: ThroughputMeter) => Promise<void>,
): Promise<Interval> {
  const meter = new ThroughputMeter(performance.now());
  let movedAt = performance.now();
  let seen = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    if (meter.bytes > seen) movedAt = now;
    seen = meter.bytes;
    if (now - movedAt > STALL_MS) stream.destroy(cutOff());
    const interval = meter.tick(now);
    if (interval) onInterval(interval);
  }, 50);
  const onAbort = () => stream.destroy();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await act(meter);
    signal.throwIfAborted();
    const { last, total } = meter.end(performance.now());
    if (last) onInterval(last);
    return total;
  } finally {
    clearInterval(timer);
    signal.removeEventListener("abort", onAbort);
  }
}

function receive(stream: Duplex, _: number, onInterval: OnInterval, signal: AbortSignal): Promise<Interval> {
  return metered(
    stream,
    onInterval,
    signal,
    (meter) =>
      new Promise((resolve, reject) => {
        stream.on("data", (chunk: Uint8Array) => meter.add(chunk.length));
        stream
          .on("end", resolve)
          .on("error", reject)
          .on("close", () => reject(cutOff()));
        stream.resume();
      }),
  );
}

/** What left here counts only as far as the agent says it arrived. */
async function send(
  stream: Duplex,
  durationMs: number,
  onInterval: OnInterval,
  signal: AbortSignal,
): Promise<Interval> {
  const chunk = new Uint8Array(CHUNK_BYTES);
  let text = "";
  let tookMs = 0;
  const total = await metered(stream, onInterval, signal, async (meter) => {
    const startedAt = performance.now();
    let failure: unknown;
    stream.on("error", (error) => {
      failure = error;
    });
    const closed = once(stream, "close", { signal }).catch(() => undefined);
    while (performance.now() - startedAt < durationMs && !stream.destroyed) {
      meter.add(chunk.length);
      if (!stream.write(chunk))
        await Promise.race([once(stream, "drain", { signal }).catch(() => undefined), closed]);
    }
    if (stream.destroyed) throw failure ?? cutOff();
    stream.end();
    text = await readAnswer(stream, "the speed test", { signal, timeoutMs: STALL_MS });
    tookMs = performance.now() - startedAt;
  });
  const said = parseResult(text);
  return said ? { fromMs: 0, toMs: said.durationMs || tookMs, bytes: said.bytes } : total;
}

function parseResult(text: string): { bytes: number; durationMs: number } | undefined {
  try {
    const { bytes, durationMs } = JSON.parse(text) as { bytes?: unknown; durationMs?: unknown };
    const isCount = (value: unknown): value is number =>
      typeof value === "number" && value >= 0 && Number.isFinite(value);
    return isCount(bytes) && isCount(durationMs) ? { bytes, durationMs } : undefined;
  } catch {
    return undefined;
  }
}
