import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { leaveProcessOneToReaper, reaperCommand } from "./reaper.ts";

const canUnshare = spawnSync("unshare", ["--pid", "--fork", "--mount-proc", "true"]).status === 0;

describe("reaper", () => {
  it("as process 1 of a container it leaves no zombie behind", function () {
    if (!canUnshare) {
      console.log("skipped: may not make a process namespace here");
      this.skip();
    }
    // Each (… &) leaves an orphan that ends at once; the first look would find the zombies without a reaper.
    const agent =
      "for i in 1 2 3 4 5; do (sleep 0.02 &); done; sleep 0.3; cat /proc/[0-9]*/stat | grep -c ' Z ' ; exit 7";
    const [file, ...args] = reaperCommand(["/bin/sh", "-c", agent]);
    const { stdout, status } = spawnSync("unshare", ["--pid", "--fork", "--mount-proc", file, ...args]);
    assert.equal(stdout.toString().trim(), "0");
    assert.equal(status, 7);
  });

  it("passes on what asks it to stop, and waits for the agent's own end", async () => {
    const agent = "trap 'sleep 0.05; echo bye; exit 4' TERM; echo up; while :; do sleep 0.02; done";
    const [file, ...args] = reaperCommand(["/bin/sh", "-c", agent]);
    const child = spawn(file, args, { stdio: ["ignore", "pipe", "inherit"] });
    let text = "";
    child.stdout.on("data", (chunk) => {
      if (text === "") child.kill("SIGTERM");
      text += chunk;
    });
    const status = await new Promise((resolve) => child.once("close", resolve));
    assert.equal(text, "up\nbye\n");
    assert.equal(status, 4);
  });

  it("loses no such wish while it starts the agent", async () => {
    // The first thing this agent does; the shell may not have come further than to start it.
    const agent =
      "trap 'echo bye; exit 4' TERM; kill -TERM $PPID; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1; done";
    const [file, ...args] = reaperCommand(["/bin/sh", "-c", agent]);
    for (let i = 0; i < 10; i++) {
      const child = spawn(file, args, { stdio: ["ignore", "pipe", "inherit"] });
      const status = await new Promise((resolve) => child.once("close", resolve));
      assert.equal(status, 4);
    }
  });

  it("does nothing where it isn't process 1", () => assert.equal(leaveProcessOneToReaper(), undefined));
});
