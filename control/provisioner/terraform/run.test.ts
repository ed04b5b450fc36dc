import assert from "node:assert/strict";
import { waitUntilGone } from "../testing.ts";
import { runTerraform } from "./run.ts";

/** A shell script in terraform's place. */
function run(script: string, more: Partial<Parameters<typeof runTerraform>[0]> = {}) {
  return runTerraform({
    binary: "/bin/sh",
    args: ["-c", script],
    cwd: "/",
    env: { PATH: process.env["PATH"] ?? "/bin:/usr/bin" },
    signal: new AbortController().signal,
    ...more,
  });
}

describe("running terraform", () => {
  it("gives its lines as they come, whole, and its exit code", async () => {
    const lines: string[] = [];
    const exit = await run("printf 'a\\nb'; sleep 0.05; printf 'c\\n\\nlast'; echo oops >&2; exit 3", {
      onLine: (line, stream) => lines.push(`${stream} ${line}`),
    });
    assert.deepEqual(
      lines.filter((line) => line.startsWith("stdout")),
      ["stdout a", "stdout bc", "stdout ", "stdout last"],
    );
    assert.ok(lines.includes("stderr oops"));
    assert.deepEqual([exit.exitCode, exit.canceled, exit.stderrTail], [3, false, "oops"]);
  });

  it("collects its output when nobody listens", async () => {
    assert.equal((await run("echo '{}'")).stdout, "{}\n");
  });

  it("cuts a line without end", async () => {
    const lines: string[] = [];
    await run("head -c 300000 /dev/zero | tr '\\0' x; echo; echo next", {
      onLine: (line) => lines.push(line),
    });
    assert.equal(lines.length, 2);
    assert.ok(lines[0]!.length < 70_000 && lines[0]!.endsWith("(cut)"));
    assert.equal(lines[1], "next");
  });

  it("says so when it can't be started", () =>
    assert.rejects(run("", { binary: "/nonexistent/terraform" }), {
      code: "ERR_TERRAFORM_CRASHED",
      message: /\/nonexistent\/terraform could not be started/,
    }));

  it("interrupts it on cancel, lets it finish, and ends what it left behind", async () => {
    const canceling = new AbortController();
    let leftover = 0;
    const exit = await run("trap 'echo saved; exit 1' INT; sleep 60 & echo $!; wait", {
      signal: canceling.signal,
      onLine: (line) => {
        if (/^\d+$/.test(line)) {
          leftover = Number(line);
          canceling.abort();
        } else assert.equal(line, "saved");
      },
    });
    assert.deepEqual([exit.exitCode, exit.canceled], [1, true]);
    assert.equal(await waitUntilGone(leftover), true);
  });

  it("kills the whole group when an interrupt doesn't help", async () => {
    const canceling = new AbortController();
    let child = 0;
    const exit = await run("trap '' INT; sleep 60 & echo $!; wait", {
      signal: canceling.signal,
      interruptGraceMs: 50,
      onLine: (line) => {
        child = Number(line);
        canceling.abort();
      },
    });
    assert.deepEqual([exit.killedBy, exit.canceled, await waitUntilGone(child)], ["SIGKILL", true, true]);
  });

  it("starts nothing once canceled", () =>
    assert.rejects(run("echo no", { signal: AbortSignal.abort() }), { code: "ERR_JOB_CANCELED" }));
});
