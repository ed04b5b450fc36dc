import assert from "node:assert/strict";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import path from "node:path";
import { bundle, root, Sandbox } from "./sandbox.ts";

const COMMAND = "echo answer=$((6*7)); exit 7";
/** `nobody`: on every Unix, owns nothing. */
const NOBODY = { uid: 65_534, gid: 65_534 };
const isRoot = process.getuid?.() === 0;

/** Why another user could not run this checkout, or undefined. */
function unreadable(): string | undefined {
  for (let dir = root; dir !== "/"; dir = path.dirname(dir))
    if ((statSync(dir).mode & 0o005) !== 0o005) return `${dir} is closed to other users`;
  return undefined;
}

describe("quickstart", function () {
  this.timeout(120_000);
  let sandbox: Sandbox;
  before(() => accessSync(bundle, constants.R_OK));
  beforeEach(() => {
    sandbox = new Sandbox();
  });
  afterEach(() => sandbox.dispose());

  function assertClean(): void {
    assert.deepEqual(sandbox.processes(), [], "processes left behind");
    assert.deepEqual(sandbox.strayFiles(), [], "files left behind");
  }

  it("runs a command in a workspace: its output alone on stdout, its exit code, nothing left behind; then reuses its data", async () => {
    const first = await sandbox.run("npm", ["run", "quickstart", "--", COMMAND]);
    assert.equal(first.stdout, "answer=42\n", first.stderr);
    assert.equal(first.code, 7, first.stderr);
    assert.match(first.stderr, /password \S{20,}/);
    assert.match(first.stderr, /Connected via relay .* round trip [\d.]+ ms/);
    assertClean();

    const again = await sandbox.run("npm", [
      "run",
      "quickstart",
      "--",
      "--",
      "printf",
      "%s",
      "a  b",
      "|",
      "tr",
      "a-z",
      "A-Z",
    ]);
    assert.equal(again.stdout, "AB", "words are joined by spaces and handed to the login shell, as ssh does");
    assert.equal(again.code, 0, again.stderr);
    assert.doesNotMatch(again.stderr, /password/);
    assert.doesNotMatch(again.stderr, /==> (Creating|Publishing)/);
    assertClean();

    const uname = await sandbox.run("npm", ["run", "quickstart"]);
    assert.match(uname.stdout, /^Linux \S+ .*\n$/);
    assert.equal(uname.code, 0, uname.stderr);
    assertClean();
    for (const file of ["config/session", "postgres/password", "server.log"])
      assert.equal(statSync(path.join(sandbox.data, file)).mode & 0o777, 0o600, file);
  });

  it("--keep stays, tells how to use the server, and SIGINT stops everything", async () => {
    const kept = sandbox.start("npm", ["run", "quickstart", "--", "--keep"], {}, true);
    const lines = /^export CODER_URL=(\S+)\nexport CODER_CONFIG_DIR=(\S+)\n$/;
    const [, url, configDir] = await sandbox.until(kept, "stdout", lines);
    const env = { CODER_URL: url, CODER_CONFIG_DIR: configDir };
    const coder = (...args: string[]) => sandbox.run(process.execPath, [bundle, ...args], env);

    const viaNpx = await sandbox.run("npx", ["--no-install", "coder", "whoami", "-o", "json"], env);
    assert.equal(JSON.parse(viaNpx.stdout)[0].username, "admin", viaNpx.stderr);
    const listed = await coder("list", "-o", "json");
    assert.equal(JSON.parse(listed.stdout)[0].latest_build.status, "running");
    const ssh = await coder("ssh", "dev", "--", "echo out; echo err >&2; exit 3");
    assert.deepEqual([ssh.stdout, ssh.stderr.includes("err\n"), ssh.code], ["out\n", true, 3]);
    const ping = await coder("ping", "dev", "-n", "2", "--wait", "10ms", "-o", "json");
    assert.equal(JSON.parse(ping.stdout).replies.length, 2, ping.stderr);
    const second = await sandbox.run(process.execPath, [bundle, "quickstart", "true"]);
    assert.notEqual(second.code, 0);
    assert.match(second.stderr, /another server uses the database/);

    // As a terminal does: to everyone in the foreground. npm passes its own on, so ours comes twice.
    process.kill(-(kept.child.pid as number), "SIGINT");
    await kept.finished;
    assertClean();
  });

  it("takes the next free port when 3000 is taken", async () => {
    const { createServer } = await import("node:net");
    const blocker = createServer();
    // Whoever holds it already serves the purpose as well.
    await new Promise<void>((resolve) =>
      blocker.once("error", () => resolve()).listen(3000, "127.0.0.1", () => resolve()),
    );
    try {
      const run = await sandbox.run(process.execPath, [bundle, "quickstart", "echo ok"]);
      assert.equal(run.stdout, "ok\n", run.stderr);
      assert.doesNotMatch(run.stderr, /http:\/\/127\.0\.0\.1:3000\b/);
    } finally {
      blocker.close();
    }
  });

  it("killed in the middle, it leaves nothing running, and the next run recovers", async () => {
    const first = sandbox.start(process.execPath, [bundle, "quickstart", "echo started; sleep 60"]);
    await sandbox.until(first, "stdout", /started/);
    first.child.kill("SIGKILL");
    await first.finished;
    const next = await sandbox.run(process.execPath, [bundle, "quickstart", "echo recovered"]);
    assert.equal(next.stdout, "recovered\n", next.stderr);
    assert.deepEqual(sandbox.processes(), []);
  });

  it("SIGTERM in the middle of a command stops everything", async () => {
    const run = sandbox.start(process.execPath, [bundle, "quickstart", "echo started; sleep 60"]);
    await sandbox.until(run, "stdout", /started/);
    run.child.kill("SIGTERM");
    assert.equal((await run.finished).code, 130);
    assertClean();
  });

  it("without terraform it says what to install, and leaves nothing", async () => {
    const bin = path.dirname(process.execPath);
    const run = await sandbox.run(process.execPath, [bundle, "quickstart", "true"], {
      PATH: existsSync(path.join(bin, "terraform")) ? "/nonexistent" : bin,
      CODER_TERRAFORM_MIRROR: "http://127.0.0.1:1",
    });
    assert.equal(run.code, 1);
    assert.match(run.stderr, /terraform/i);
    assert.match(run.stderr, /install|CODER_TERRAFORM_BIN/i);
    assertClean();
  });

  it("works as an ordinary user", async function () {
    const why = isRoot ? unreadable() : "this already runs as an ordinary user";
    if (why) {
      console.log(`      skipped: ${why}`);
      return this.skip();
    }
    sandbox.dispose();
    sandbox = new Sandbox(NOBODY);
    const run = await sandbox.run(process.execPath, [bundle, "quickstart", "id -u; exit 7"]);
    assert.equal(run.stdout, "65534\n", run.stderr);
    assert.equal(run.code, 7);
    assertClean();
  });
});
