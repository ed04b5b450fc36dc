import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { AgentScript } from "../control/contract/agent.ts";
import { binDirOf, ownDirectory, runScript, runScripts, type ScriptDeps, scriptCommand } from "./scripts.ts";
import { PipePool } from "./sessions/pipes.ts";
import { memoryLogger } from "./testing.ts";

const SOURCE = "5b5c9c7e-0000-4000-8000-000000000001";

describe("scripts", () => {
  const pipes = new PipePool();
  let directory = "";
  let lines: string[] = [];
  let stop = new AbortController();
  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), "scripts-test-"));
    lines = [];
    stop = new AbortController();
  });
  afterEach(() => fs.rmSync(directory, { recursive: true, force: true }));
  after(() => pipes.close());

  const deps = (): ScriptDeps => ({
    shell: "/bin/bash",
    homeDir: directory,
    environment: { PATH: process.env["PATH"] ?? "", HOME: directory },
    directory: () => directory,
    dataDir: path.join(directory, "data"),
    logDir: directory,
    pipes,
    logger: memoryLogger(),
    log: (source, level, output) => {
      assert.equal(source, SOURCE);
      lines.push(`${level}: ${output}`);
    },
    signal: stop.signal,
    leftOpenMs: 100,
    termGraceMs: 100,
  });
  const make = (script: string, more: Partial<AgentScript> = {}): AgentScript => ({
    id: SOURCE,
    log_source_id: SOURCE,
    display_name: "test",
    script,
    log_path: "",
    cron: "",
    run_on_start: true,
    run_on_stop: false,
    start_blocks_login: false,
    timeout_seconds: 0,
    ...more,
  });

  it("logs both outputs line by line, also the last without an end", async () => {
    const outcome = await runScript(make("echo one; echo two >&2; sleep 0.02; printf three"), deps());
    assert.equal(outcome, "ok");
    assert.deepEqual(lines.sort(), ["error: two", "info: one", "info: three"]);
  });

  it("a failing script says its exit code, and one killed its signal", async () => {
    assert.equal(await runScript(make("exit 3"), deps()), "failed");
    assert.equal(await runScript(make("kill -KILL $$"), deps()), "failed");
    assert.deepEqual(lines, [
      "error: The script failed with exit code 3.",
      "error: The script was ended by signal KILL.",
    ]);
  });

  it("a script over its limit is ended, however stubborn, with its children", async () => {
    const script = "trap '' TERM; sleep 300 & echo $!; while :; do sleep 0.02; done";
    assert.equal(await runScript(make(script, { timeout_seconds: 0.1 }), deps()), "timedOut");
    assert.match(lines.at(-1) ?? "", /ran into its limit/);
    const child = /info: (\d+)/.exec(lines[0])?.[1];
    const state = fs.existsSync(`/proc/${child}/status`)
      ? fs.readFileSync(`/proc/${child}/status`, "latin1")
      : "State: gone";
    assert.match(state, /State:\s*(gone|Z)/);
  });

  it("a workspace that stops ends its start scripts", async () => {
    const running = runScript(make("echo up; exec sleep 300"), deps());
    while (lines.length === 0) await new Promise(setImmediate);
    stop.abort();
    assert.equal(await running, "stopped");
    assert.equal(await runScript(make("echo never"), deps()), "stopped");
  });

  it("does not wait for a server left in the background, and keeps reading its output", async () => {
    const script = "(sleep 0.3; echo late; echo later) & echo started";
    assert.equal(await runScript(make(script), deps()), "ok");
    assert.match(lines.at(-1) ?? "", /still holds its output/);
    while (!lines.includes("info: later")) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.ok(lines.includes("info: late"));
  });

  it("writes the log file 0600, and not through a link", async () => {
    const file = path.join(directory, "logs", "startup.log");
    await runScript(make("echo out; echo err >/dev/stderr", { log_path: "logs/startup.log" }), deps());
    assert.deepEqual(fs.readFileSync(file, "utf8").split("\n").sort(), ["", "err", "out"]);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    fs.writeFileSync(path.join(directory, "victim"), "untouched");
    fs.symlinkSync(path.join(directory, "victim"), path.join(directory, "link.log"));
    assert.equal(await runScript(make("echo x", { log_path: "~/link.log" }), deps()), "ok");
    assert.equal(fs.readFileSync(path.join(directory, "victim"), "utf8"), "untouched");
    assert.ok(lines.some((line) => line.startsWith("warn: The log file")));
  });

  it("writes no log into what another made in its place: a FIFO, a second name, another's file", async () => {
    const at = (name: string) => path.join(directory, name);
    execFileSync("mkfifo", [at("fifo.log")]);
    // With a reader, so that a regression shows as a missing warning instead of a test that hangs.
    const reader = fs.openSync(at("fifo.log"), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    fs.writeFileSync(at("victim"), "untouched");
    fs.linkSync(at("victim"), at("second.log"));
    const isRoot = process.getuid?.() === 0;
    fs.writeFileSync(at("other.log"), "untouched");
    if (isRoot) fs.chownSync(at("other.log"), 12_345, 12_345);
    const names = ["fifo.log", "second.log", ...(isRoot ? ["other.log"] : [])];
    try {
      for (const name of names) {
        lines = [];
        assert.equal(await runScript(make("echo secret", { log_path: `~/${name}` }), deps()), "ok");
        assert.ok(
          lines.some((line) => line.startsWith("warn: The log file")),
          `${name}: ${lines.join("; ")}`,
        );
      }
    } finally {
      fs.closeSync(reader);
    }
    for (const name of ["victim", "other.log"]) assert.equal(fs.readFileSync(at(name), "utf8"), "untouched");
  });

  it("starts its log anew, also over a longer one", async () => {
    const file = path.join(directory, "again.log");
    fs.writeFileSync(file, "x".repeat(1_000));
    await runScript(make("echo short", { log_path: "again.log" }), deps());
    assert.equal(fs.readFileSync(file, "utf8"), "short\n");
  });

  it("gives scripts a private folder and a shared one for programs", async () => {
    await runScript(make('echo "$CODER_SCRIPT_DATA_DIR|$CODER_SCRIPT_BIN_DIR"'), deps());
    const { dataDir } = deps();
    assert.deepEqual(lines, [`info: ${path.join(dataDir, SOURCE)}|${binDirOf(dataDir)}`]);
    assert.equal(fs.statSync(dataDir).mode & 0o777, 0o700);
  });

  it("refuses a data folder that is a link", () => {
    fs.symlinkSync(os.tmpdir(), path.join(directory, "elsewhere"));
    assert.throws(() => ownDirectory(path.join(directory, "elsewhere")), /not this user's own folder/);
  });

  it("a #! line names the interpreter, indented or not", async () => {
    assert.deepEqual(scriptCommand("echo", "/bin/zsh"), ["/bin/zsh", "-c", "echo"]);
    const indented = "\n  #!/usr/bin/env -S sh -e\n  echo";
    assert.deepEqual(scriptCommand(indented, "/bin/zsh"), ["/usr/bin/env", "-S", "sh", "-e", "-c", indented]);
    assert.equal(await runScript(make("#!/bin/sh\necho $0"), deps()), "ok");
    assert.deepEqual(lines, ["info: /bin/sh"]);
  });

  it("what can't be started is an outcome, not an exception", async () => {
    assert.equal(await runScript(make("#!/no/such/interpreter\n"), deps()), "failed");
    assert.match(lines[0], /could not be run: .*ENOENT/);
    assert.equal(await runScript(make(`#${"x".repeat(140_000)}`), deps()), "failed");
    assert.match(lines[1], /longer than/);
  });

  it("side by side: the slowest decides when, the worst what", async () => {
    const scripts = [make("exit 0"), make("exit 1"), make("sleep 60", { timeout_seconds: 0.1 })];
    assert.equal(await runScripts(scripts, deps()), "timedOut");
    assert.equal(await runScripts(scripts.slice(0, 2), deps()), "failed");
    assert.equal(await runScripts([], deps()), "ok");
  });
});
