import assert from "node:assert/strict";
import fc from "fast-check";
import type { AgentLogBatch } from "../control/contract/agent.ts";
import { AgentApiError } from "./api.ts";
import { LineSplitter, LogQueue, MAX_BATCH_CHARS, MAX_BATCH_LINES, MAX_LINE_CHARS } from "./logs.ts";
import { memoryLogger } from "./testing.ts";

function split(chunks: Uint8Array[]): string[] {
  const lines: string[] = [];
  const splitter = new LineSplitter((line) => lines.push(line));
  for (const chunk of chunks) splitter.push(chunk);
  splitter.end();
  return lines;
}

describe("log lines", () => {
  it("are the same however the output was cut", () => {
    const line = fc.string({ unit: "grapheme", maxLength: 20 }).map((text) => text.replace(/[\r\n\0]/g, ""));
    fc.assert(
      fc.property(fc.array(line), fc.integer({ min: 1, max: 9 }), (lines, size) => {
        const bytes = Buffer.from(lines.map((text) => `${text}\n`).join(""));
        const chunks: Buffer[] = [];
        for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size));
        assert.deepEqual(split(chunks), lines);
      }),
    );
  });

  it("lose what the database can't hold, and what a progress bar painted over", () =>
    assert.deepEqual(split([Buffer.from("a\0b\r\n10%\r50%\r100%\nlast")]), ["ab", "100%", "last"]));

  it("longer than the limit become several", () => {
    const lines = split([Buffer.from("x".repeat(MAX_LINE_CHARS + 1)), Buffer.from("y\n")]);
    assert.deepEqual(
      lines.map((line) => line.length),
      [MAX_LINE_CHARS, 2],
    );
  });
});

describe("log queue", () => {
  it("sends in order, in bounded batches, one source each", async () => {
    const batches: AgentLogBatch[] = [];
    const queue = new LogQueue(async (batch) => void batches.push(batch), memoryLogger());
    for (let i = 0; i < MAX_BATCH_LINES + 10; i++) queue.add("a", "info", String(i));
    queue.add("b", "error", "other");
    await queue.close(5_000);
    const a = batches.filter((batch) => batch.log_source_id === "a");
    assert.deepEqual(
      a.map(({ logs }) => logs.length),
      [MAX_BATCH_LINES, 10],
    );
    assert.deepEqual(
      a.flatMap(({ logs }) => logs.map(({ output }) => Number(output))),
      Array.from({ length: MAX_BATCH_LINES + 10 }, (_, i) => i),
    );
    assert.equal(batches.find((batch) => batch.log_source_id === "b")?.logs[0].level, "error");
  });

  it("keeps a batch the server did not take, and says how much it had to leave out", async () => {
    const batches: AgentLogBatch[] = [];
    let failures = 1;
    const queue = new LogQueue(async (batch) => {
      if (failures-- > 0) throw new AgentApiError("ERR_SERVER_UNREACHABLE", "away");
      batches.push(batch);
    }, memoryLogger());
    queue.add("a", "info", "first");
    for (let i = 0; i < 200; i++) queue.add("a", "info", "x".repeat(MAX_LINE_CHARS));
    await queue.close(10_000);
    const outputs = batches.flatMap(({ logs }) => logs.map(({ output }) => output));
    assert.equal(outputs[0], "first");
    const chars = outputs.reduce((sum, output) => sum + output.length, 0);
    assert.ok(
      chars < 2 << 20 &&
        batches.every(({ logs }) => logs.map((l) => l.output).join("").length <= MAX_BATCH_CHARS + 200),
    );
    assert.ok(outputs.some((output) => /^\(\d+ lines left out here/.test(output)));
  });

  it("stops when the server says the log is full, and drops what it refuses", async () => {
    const sent: string[] = [];
    const codes = ["ERR_REQUEST_REFUSED", "ERR_LOGS_FULL"] as const;
    const queue = new LogQueue(async ({ logs }) => {
      sent.push(logs[0].output);
      throw new AgentApiError(codes[sent.length - 1], "no");
    }, memoryLogger());
    queue.add("a", "info", "refused");
    queue.add("b", "info", "full");
    queue.add("c", "info", "never");
    await queue.close(5_000);
    queue.add("a", "info", "never");
    assert.deepEqual(sent, ["refused", "full"]);
  });

  it("closing does not wait longer than it was told", async () => {
    const queue = new LogQueue(() => new Promise(() => {}), memoryLogger());
    queue.add("a", "info", "x");
    await queue.close(10);
  });
});
