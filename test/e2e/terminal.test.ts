// The terminal as a person uses it: one quickstart server, `coder ssh` on tmux panes, in pipes and with files.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { bundle, type Finished, type Running, Sandbox } from "./sandbox.ts";
import { poll, type Terminal, Tmux } from "./tmux.ts";

const sha256 = (bytes: Uint8Array | string) => createHash("sha256").update(bytes).digest("hex");
const TEN_MB = "head -c 10000000 /dev/zero | tr '\\0' x | fold -w 79";
const TEN_MB_SHA256 = sha256(`${"x".repeat(79)}\n`.repeat(126_582) + "x".repeat(10_000_000 % 79));
/** The prompt of the shell on this side, and of the one in the workspace. */
const LOCAL_PROMPT = /^local> *$(?![\s\S]*\S)/m;
const REMOTE_PROMPT = /^remote> *$(?![\s\S]*\S)/m;

function isMissing(program: string): boolean {
  try {
    execFileSync("sh", ["-c", `command -v ${program}`]);
    return false;
  } catch {
    return true;
  }
}

function skipWithout(this: Mocha.Context, program: string): void {
  if (!isMissing(program)) return;
  console.log(`      skipped: ${program} is not installed`);
  this.skip();
}

/** Processes whose command line is these words. */
function running(...words: string[]): string[] {
  return readdirSync("/proc").filter((pid) => {
    try {
      return (
        /^\d+$/.test(pid) &&
        readFileSync(`/proc/${pid}/cmdline`, "utf8") === words.map((w) => `${w}\0`).join("")
      );
    } catch {
      return false; // ended meanwhile
    }
  });
}

describe("coder ssh in a terminal and in pipes", function () {
  this.timeout(60_000);
  const sandbox = new Sandbox();
  let kept: Running;
  let env: NodeJS.ProcessEnv;
  let tmux: Tmux;
  let nextSleep = 400_000 + Math.floor(Math.random() * 100_000);
  /** A `sleep` that no other process on this machine has. */
  const uniqueSleep = () => ["sleep", String(nextSleep++)] as const;

  before(async () => {
    kept = sandbox.start(process.execPath, [bundle, "quickstart", "--keep"]);
    const lines = /^export CODER_URL=(\S+)\nexport CODER_CONFIG_DIR=(\S+)\n$/;
    const [, url, configDir] = await sandbox.until(kept, "stdout", lines);
    const coder = path.join(sandbox.dir, "coder");
    writeFileSync(coder, `#!/bin/sh\nexec '${process.execPath}' '${bundle}' "$@"\n`, { mode: 0o755 });
    env = {
      CODER_URL: url,
      CODER_CONFIG_DIR: configDir,
      PATH: `${sandbox.dir}:${sandbox.env["PATH"]}`,
      LANG: "C.UTF-8",
    };
    const startup = path.join(sandbox.dir, "shellrc");
    writeFileSync(startup, "PS1='local> '\n");
    tmux = new Tmux(sandbox, { ...env, ENV: startup });
  });

  after(async () => {
    tmux?.close();
    if (kept && kept.child.exitCode === null) {
      kept.child.kill("SIGINT");
      await kept.finished;
    }
    try {
      await poll(
        () => sandbox.processes().length === 0,
        () => `all processes end:\n${sandbox.processes().join("\n")}`,
      );
    } finally {
      sandbox.dispose();
    }
  });

  /** A line for bash on this side, with `coder` on its PATH. */
  const bash = (line: string): Promise<Finished> => sandbox.run("bash", ["-c", line], env);

  /** A plain shell on this side, which, other than bash, leaves a terminal's mode as its programs left it. */
  async function localShell(): Promise<Terminal> {
    const terminal = tmux.open("exec sh -i");
    await terminal.sees(LOCAL_PROMPT);
    terminal.enter("before=$(stty -g)");
    // Keys typed ahead of the prompt would be echoed before it, and what comes next would share its line.
    await terminal.sees(/ before=\$\(stty -g\)\nlocal> *$(?![\s\S]*\S)/m);
    return terminal;
  }

  /** The same with a shell in the workspace on it. */
  async function remoteShell(options = ""): Promise<Terminal> {
    const terminal = await localShell();
    terminal.enter(`coder ssh ${options} dev; echo "left with $?"`);
    await terminal.sees(/^(?!local).*[#$%>] *$(?![\s\S]*\S)/m);
    terminal.enter("PS1='remote> '; clear");
    await terminal.sees(REMOTE_PROMPT);
    return terminal;
  }

  async function assertRestored(terminal: Terminal): Promise<void> {
    terminal.enter('clear; [ "$(stty -g)" = "$before" ] && echo as before');
    await terminal.sees(/^as before$/m);
    terminal.close();
  }

  describe("on a terminal", () => {
    before(function () {
      skipWithout.call(this, "tmux");
    });

    it("a shell has a prompt, echo, the terminal's type, size and UTF-8; its exit code comes back", async () => {
      const terminal = await remoteShell();
      terminal.enter("echo sum=$((40+2)) $TERM $(tty | cut -c1-9) 'täst 日本 🦊'");
      await terminal.sees(/^sum=42 (tmux|screen)\S* \/dev\/pts\/ täst 日本 🦊$/m);
      terminal.enter("clear; stty size");
      await terminal.sees(/^30 100$/m);
      terminal.resize(71, 19);
      terminal.enter("clear; stty size");
      await terminal.sees(/^19 71$/m);
      terminal.resize(100, 30);
      // The kernel's own line editing: one backspace takes one character, however many bytes it has.
      terminal.enter("clear; echo reading; head -n1 | od -An -tx1");
      await terminal.sees(/^reading$/m);
      terminal.type("aä日");
      terminal.press("BSpace", "BSpace");
      terminal.enter("b");
      await terminal.sees(/^ 61 62 0a$/m);
      terminal.enter("exit 7");
      await terminal.sees(/^left with 7$/m);
      await assertRestored(terminal);
    });

    it("Ctrl-C interrupts what runs and the shell lives on; Ctrl-Z stops it; Ctrl-D leaves", async () => {
      const sleep = uniqueSleep();
      const terminal = await remoteShell();
      terminal.enter(sleep.join(" "));
      await poll(
        () => running(...sleep).length === 1,
        () => "the sleep runs",
      );
      terminal.press("C-c");
      await terminal.sees(REMOTE_PROMPT);
      terminal.enter("echo status=$?");
      await terminal.sees(/^status=130$/m);
      terminal.enter(`clear; ${sleep.join(" ")}`);
      await poll(
        () => running(...sleep).length === 1,
        () => "the sleep runs",
      );
      terminal.press("C-z");
      await terminal.sees(/Stopped/);
      terminal.enter("kill %1; clear; (exit 0)");
      await terminal.sees(REMOTE_PROMPT);
      terminal.press("C-d");
      await terminal.sees(/^left with \d+$/m);
      assert.deepEqual(running(...sleep), []);
      await assertRestored(terminal);
    });

    it("vim fills the screen, follows a resize, writes the file and leaves the screen as it was", async function () {
      skipWithout.call(this, "vim");
      const terminal = await localShell();
      terminal.enter('clear; coder ssh dev -t -- vim -u NONE -i NONE note.txt; echo "left with $?"');
      await terminal.sees(/^~\n[\s\S]*"note\.txt" \[New(?: File)?\]/m);
      assert.equal(terminal.screen().match(/^~$/gm)?.length, 28, "28 empty lines on 30");
      terminal.type("ihällo 日本");
      terminal.press("Escape");
      // While it works on keys, vim looks at no new size before the next key.
      terminal.enter(":echo 'at rest'");
      await terminal.sees(/^at rest/m);
      terminal.resize(60, 12);
      await poll(
        () => terminal.screen().match(/^~$/gm)?.length === 10,
        () => `10 empty lines on 12:\n${terminal.screen()}`,
      );
      terminal.enter(":set columns? lines?");
      await terminal.sees(/columns=60\s+lines=12|lines=12\s+columns=60/);
      terminal.press("Enter");
      terminal.enter(":wq");
      await terminal.sees(/^left with 0$/m);
      assert.doesNotMatch(terminal.screen(), /^~$/m);
      terminal.resize(100, 30);
      await assertRestored(terminal);
      const { stdout } = await bash("coder ssh dev -- cat note.txt");
      assert.equal(stdout, "hällo 日本\n");
    });

    it("a background job does not keep the shell, and gets no SIGHUP when the shell leaves by itself", async () => {
      const sleep = uniqueSleep();
      const terminal = await remoteShell();
      terminal.enter(`${sleep.join(" ")} & exit 3`);
      await terminal.sees(/^left with 3$/m);
      await assertRestored(terminal);
      const pids = running(...sleep);
      for (const pid of pids) process.kill(Number(pid), "SIGKILL");
      assert.equal(pids.length, 1);
    });

    for (const [signal, code] of [
      ["TERM", 143],
      ["HUP", 129],
      ["INT", 130],
    ] as const)
      it(`SIG${signal} to the client restores the terminal and ends what runs in the workspace`, async () => {
        const sleep = uniqueSleep();
        const terminal = await localShell();
        terminal.enter(`coder ssh -t dev -- '${sleep.join(" ")}; true'`);
        await poll(
          () => running(...sleep).length === 1,
          () => `the sleep runs:\n${terminal.screen()}`,
        );
        const line = [process.execPath, bundle, "ssh", "-t", "dev", "--", `${sleep.join(" ")}; true`];
        const [client] = running(...line);
        process.kill(Number(client), `SIG${signal}`);
        await terminal.sees(LOCAL_PROMPT);
        terminal.enter("echo left with $?");
        await terminal.sees(new RegExp(`^left with ${code}$`, "m"));
        await assertRestored(terminal);
        await poll(
          () => running(...sleep).length === 0,
          () => "the sleep ends",
        );
      });

    it("closing the window ends what runs in the workspace", async () => {
      const sleep = uniqueSleep();
      const terminal = await remoteShell();
      terminal.enter(sleep.join(" "));
      await poll(
        () => running(...sleep).length === 1,
        () => "the sleep runs",
      );
      terminal.close();
      await poll(
        () => running(...sleep).length === 0,
        () => "the sleep ends",
      );
    });

    it("~. at the start of a line leaves, ~~ types one", async () => {
      const terminal = await remoteShell();
      terminal.enter("~~; echo 'not ~.'");
      await terminal.sees(/^not ~\.$/m);
      terminal.type("~.");
      await terminal.sees(/^Session closed\.\nleft with 255$/m);
      await assertRestored(terminal);
    });

    it("quickstart without a command opens a shell, and stops everything when it is left", async () => {
      const terminal = await localShell();
      const data = path.join(sandbox.dir, "q");
      terminal.enter(`CODER_QUICKSTART_DIR=${data} coder quickstart; echo "left with $?"`);
      await terminal.sees(/Connected via relay[\s\S]*[#$%>] *$(?![\s\S]*\S)/m, 60_000);
      terminal.enter("clear; echo $CODER_WORKSPACE_NAME $((6*7)); exit 5");
      await terminal.sees(/^dev 42\n[\s\S]*==> Stopping\nleft with 5$/m);
      await assertRestored(terminal);
    });
  });

  describe("in pipes", () => {
    it("10 MB arrive whole through a pipe, and through a terminal", async () => {
      const [plain, pty] = [
        await bash(`coder ssh dev -- "${TEN_MB.replaceAll("\\", "\\\\")}" | sha256sum`),
        await bash(`coder ssh dev -t -- "${TEN_MB.replaceAll("\\", "\\\\")}" | tr -d '\\r' | sha256sum`),
      ];
      assert.equal(plain.stdout.split(" ")[0], TEN_MB_SHA256, plain.stderr);
      assert.equal(pty.stdout.split(" ")[0], TEN_MB_SHA256, pty.stderr);
    });

    it("binary data stays what it is, both ways, from a file and from a pipe", async () => {
      const bytes = randomBytes(3_000_000);
      const file = path.join(sandbox.dir, "bytes");
      writeFileSync(file, bytes);
      const run = await bash(
        `coder ssh dev -- 'cat >bytes; sha256sum <bytes' <${file}; cat ${file} | coder ssh dev cat | sha256sum; coder ssh dev cat bytes | sha256sum; coder ssh dev rm bytes`,
      );
      assert.deepEqual(
        run.stdout.split("\n").map((line) => line.split(" ")[0]),
        [sha256(bytes), sha256(bytes), sha256(bytes), ""],
        run.stderr,
      );
    });

    it("stdin may be closed or endless, stdout and stderr closed or full", async () => {
      const run = await bash(
        [
          "coder ssh dev -- 'cat; echo closed' <&-",
          "yes | coder ssh dev -- head -c 10 | tr '\\n' ,; echo",
          "coder ssh dev -- 'echo lost; exit 4' >&-; echo $?",
          "coder ssh dev -- 'echo lost >&2; exit 5' 2>&-; echo $?",
          "coder ssh dev -- 'echo lost' >/dev/full; echo $?",
        ].join("\n"),
      );
      assert.equal(run.stdout, "closed\ny,y,y,y,y,\n4\n5\n255\n");
      assert.match(run.stderr, /^error: the output could not be written: ENOSPC/m);
    });

    it("a reader that goes away ends the command in the workspace, with 141", async () => {
      const marker = `y${nextSleep++}`;
      const run = await bash(`coder ssh dev -- exec yes ${marker} | head -n1; echo \${PIPESTATUS[0]}`);
      assert.equal(run.stdout, `${marker}\n141\n`, run.stderr);
      await poll(
        () => running("yes", marker).length === 0,
        () => "yes ends",
      );
    });

    it("a client that is told to end does, though nobody reads its output", async () => {
      const marker = `y${nextSleep++}`;
      const run = sandbox.start(
        "bash",
        ["-c", `coder ssh dev -- exec yes ${marker} | sleep 60 & echo $!; wait`],
        env,
      );
      await poll(
        () => running("yes", marker).length === 1,
        () => run.stderr,
      );
      const [client] = running(process.execPath, bundle, "ssh", "dev", "--", "exec", "yes", marker);
      process.kill(Number(client), "SIGTERM");
      await poll(
        () => running("yes", marker).length === 0,
        () => "yes ends",
      );
      await poll(
        () => !running(process.execPath, bundle, "ssh", "dev", "--", "exec", "yes", marker).length,
        () => "the client ends",
      );
      process.kill(Number(run.stdout), "SIGTERM");
      await run.finished;
    });

    it("options stand before or behind the name; a command's own options are the command's", async () => {
      const run = await bash(
        [
          "coder ssh -e FOO='a b' dev 'echo $FOO'",
          "coder ssh dev -e FOO=bar --env BAR=c -- 'echo $FOO $BAR'",
          "coder ssh dev -t 'test -t 1 && echo terminal' | tr -d '\\r'",
          "coder ssh dev 'test -t 1 || echo none'",
          "coder ssh dev -- printf '%s\\\\n' -t",
          "coder ssh dev printf %s -e",
          "echo; coder ssh dev --nonsense true; echo $?",
        ].join("\n"),
      );
      assert.equal(run.stdout, "a b\nbar c\nterminal\nnone\n-t\n-e\n255\n", run.stderr);
      assert.match(run.stderr, /^error: unknown option "--nonsense"$/m);
    });
  });

  // Last: what the others use ends here.
  describe("when the other side goes away", () => {
    before(function () {
      skipWithout.call(this, "tmux");
    });

    it("when the agent is killed and comes back, its sessions say so and end with 255", async () => {
      const terminal = await remoteShell();
      const workspaces = path.join(sandbox.data, "workspaces");
      const [id] = readdirSync(workspaces);
      const pid = readFileSync(path.join(workspaces, id, "agent.pid"), "utf8").split(/\s/)[0];
      const strings = (file: string) => readFileSync(`/proc/${pid}/${file}`, "utf8").split("\0").slice(0, -1);
      const [command, ...args] = strings("cmdline");
      const variables = strings("environ").map((line): [string, string] => {
        const at = line.indexOf("=");
        return [line.slice(0, at), line.slice(at + 1)];
      });
      process.kill(Number(pid), "SIGKILL");
      // As a supervisor would.
      const again = sandbox.start(command, args, Object.fromEntries(variables));
      await terminal.sees(/^error: the session was cut off: the agent was restarted[\s\S]*^left with 255$/m);
      await assertRestored(terminal);
      const back = await bash("coder ssh dev -- echo back");
      assert.equal(back.stdout, "back\n", back.stderr);
      again.child.kill("SIGTERM");
      await again.finished;
    });

    it("when the server is stopped, sessions say so and end with 255", async () => {
      const restart = await bash("coder stop dev --yes && coder start dev --yes");
      assert.equal(restart.code, 0, restart.stderr);
      const sleep = uniqueSleep();
      const terminal = await remoteShell();
      terminal.enter(sleep.join(" "));
      await poll(
        () => running(...sleep).length === 1,
        () => "the sleep runs",
      );
      kept.child.kill("SIGINT");
      await terminal.sees(/^error: the session was cut off: the workspace ended it[\s\S]*^left with 255$/m);
      await assertRestored(terminal);
      await kept.finished;
      assert.deepEqual(running(...sleep), []);
    });
  });
});
