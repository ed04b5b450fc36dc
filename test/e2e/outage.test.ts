// What a user must not notice: a cut relay connection, a cut coordinator connection, a server that restarts or is killed.
// And what must be noticed at once: that access ended.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, statSync } from "node:fs";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import type { Purpose } from "./gate.ts";
import { SshLab } from "./lab.ts";
import { Counter, freePort, Transfer } from "./outage.ts";
import { bundle, type Running } from "./sandbox.ts";
import { Person } from "./server.ts";
import { poll, Tmux } from "./tmux.ts";

const BIG_BYTES = 200_000_000;
/** Ten times what is promised: this only tells "late" from "never". */
const NEVER_MS = 20_000;

let lab: SshLab;

/** Both suites use one lab. */
describe("over a network that fails,", function () {
  this.timeout(120_000);
  before(async () => {
    lab = await SshLab.start();
  });
  after(async () => {
    await lab?.close();
  });

  describe("sessions outlive", () => {
    let want: string;
    before(() => {
      execFileSync("sh", ["-c", `head -c ${BIG_BYTES} /dev/urandom > '${lab.remote("big")}'`]);
      const hash = createHash("sha256");
      hash.update(execFileSync("cat", [lab.remote("big")], { maxBuffer: BIG_BYTES + 1 }));
      want = hash.digest("hex");
    });

    /** The agent and both clients are there, also where one has just lost its connection. */
    async function allConnected(purpose: Purpose): Promise<void> {
      await poll(
        () => lab.gate.count(purpose) >= 3,
        () => `3 connections to the ${purpose}, there are ${lab.gate.count(purpose)}`,
        NEVER_MS,
      );
    }

    /** A 200 MB download and a shell that echoes a counter, both through `event`. */
    async function through(event: () => Promise<void>): Promise<void> {
      const transfer = new Transfer(lab, "cat big");
      const counter = new Counter(lab);
      try {
        await transfer.reached(40_000_000);
        await counter.reached(20);
        transfer.hold();
        await event();
        const [sent, at] = [counter.sent, transfer.bytes];
        transfer.release();
        await counter.reached(sent + 20, NEVER_MS);
        assert.ok(transfer.bytes >= at);
        assert.deepEqual(await transfer.finished(), { code: 0, bytes: BIG_BYTES, sha256: want });
        assert.equal(await counter.finished(), 0);
        assert.equal(counter.disorder, undefined);
      } finally {
        transfer.kill();
        counter.kill();
      }
    }

    it("cut relay connections, again and again", async () => {
      await through(async () => {
        for (let i = 0; i < 3; i++) {
          await allConnected("derp");
          lab.gate.cut("derp");
        }
      });
    });

    it("a relay connection that falls silent without an end", async () => {
      await through(async () => {
        await allConnected("derp");
        lab.gate.freeze("derp");
      });
    });

    it("cut coordinator connections", async () => {
      await through(async () => {
        await allConnected("coordinator");
        lab.gate.cut("coordinator");
      });
    });

    it("a restart of the server", async () => {
      await through(() => lab.restartServer({ signal: "SIGTERM", awayMs: 0 }));
    });

    it("a server that is killed and comes back after ten seconds", async () => {
      await through(() => lab.restartServer({ signal: "SIGKILL", awayMs: 10_000 }));
    });

    it("and an upload is as safe as a download", async () => {
      const counter = new Counter(lab);
      const upload = lab.bash(`ssh coder.dev 'cat > up; sha256sum up' < ${lab.remote("big")}`);
      try {
        await counter.reached(5);
        await poll(
          () => existsSync(lab.remote("up")) && statSync(lab.remote("up")).size > 20_000_000,
          () => "the upload is under way",
        );
        await allConnected("derp");
        lab.gate.cut("derp");
        await lab.restartServer({ signal: "SIGKILL", awayMs: 500 });
        const done = await upload.finished;
        assert.equal(done.code, 0, done.stderr);
        assert.equal(done.stdout.split(" ")[0], want);
        assert.equal(await counter.finished(), 0);
        assert.equal(counter.disorder, undefined);
      } finally {
        counter.kill();
        upload.child.kill("SIGKILL");
      }
    });

    it("a stall longer than three seconds is told in one line, and its end in another", async () => {
      const tmux = new Tmux(lab.sandbox, { CODER_CONFIG_DIR: lab.alice.configDir });
      const program = `'${process.execPath}' '${bundle}'`;
      try {
        const terminal = tmux.open(`${program} ssh dev`);
        await terminal.sees(/[$#] *$/m);
        terminal.enter("echo before=$((1+1))");
        await terminal.sees(/^before=2$/m);
        lab.server.running.child.kill("SIGKILL");
        await lab.server.running.finished;
        await terminal.sees(/connection .*(lost|stalled|interrupted)/i, 30_000);
        await lab.restartServer({ signal: "SIGKILL", awayMs: 0 });
        await terminal.sees(/connection .*(back|restored)/i, 30_000);
        terminal.enter("echo after=$((1+2))");
        await terminal.sees(/^after=3$/m);
        const lines = terminal.screen().match(/connection .*/gi) ?? [];
        assert.equal(lines.length, 2, lines.join("\n"));
        terminal.enter("exit");
      } finally {
        tmux.close();
      }
    });
  });

  describe("access that ends, ends at once", () => {
    let web: http.Server;
    before(async () => {
      web = http.createServer((_, response) => response.end("hello"));
      web.listen(0, "127.0.0.1");
      await once(web, "listening");
    });
    after(() => {
      web?.close();
      web?.closeAllConnections();
    });

    /** A shell and a port forward of one login, live; `cut` tells how long after `act` both are gone. */
    async function live(person: Person, workspace: string) {
      const shell = person.start("ssh", workspace, "echo up; while :; do sleep 0.05; echo tick; done");
      await lab.sandbox.until(shell, "stdout", /tick/);
      const local = await freePort();
      const { port } = web.address() as AddressInfo;
      const forward = person.start("port-forward", workspace, "--tcp", `${local}:${port}`);
      await lab.sandbox.until(forward, "stdout", new RegExp(`:${local} `));
      const held = net.connect(local, "127.0.0.1");
      held.on("error", () => undefined);
      // A live connection through the forward: held open by keep-alive.
      held.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
      await once(held, "data");
      const gone = Promise.all([
        shell.finished,
        new Promise<void>((resolve) => held.once("close", () => resolve())),
      ]);
      return {
        async goneAfter(
          act: () => Promise<unknown>,
        ): Promise<{ ms: number; shell: Awaited<Running["finished"]> }> {
          const startedAt = performance.now();
          await act();
          const [ended] = await gone;
          return { ms: performance.now() - startedAt, shell: ended };
        },
        kill() {
          shell.child.kill("SIGKILL");
          forward.child.kill("SIGKILL");
          held.destroy();
        },
      };
    }

    it("deleting the token cuts a live shell and a live forward", async () => {
      const other = new Person(lab.sandbox, lab.gate.url, "alice-2");
      const login = await other.coder(
        "login",
        lab.gate.url,
        "--email",
        "alice@example.com",
        "--password",
        "correct-Horse-9-battery",
      );
      assert.equal(login.code, 0, login.stderr);
      const sessions = await live(other, "dev");
      try {
        const id = other.token.split("-")[0];
        const { ms, shell } = await sessions.goneAfter(async () => {
          assert.equal((await lab.alice.api("DELETE", `/users/me/keys/${id}`)).status, 204);
        });
        assert.ok(ms < 10_000, `took ${ms} ms`);
        assert.equal(shell.code, 255);
        assert.match(shell.stderr, /revoked|log in/i);
        console.log(`      cut ${Math.round(ms)} ms after the call`);
        assert.equal(
          (await lab.alice.must("ssh", "dev", "echo fine")).stdout,
          "fine\n",
          "other logins go on",
        );
      } finally {
        sessions.kill();
      }
    });

    it("suspending the user cuts both, and lets nobody back in", async () => {
      const bob = await lab.alice.invite("bob");
      await bob.must("create", "bobs", "--template", "local", "--yes");
      const sessions = await live(bob, "bobs");
      try {
        const { ms, shell } = await sessions.goneAfter(async () => {
          assert.equal((await lab.alice.api("PUT", "/users/bob/status/suspend")).status, 200);
        });
        assert.ok(ms < 10_000, `took ${ms} ms`);
        assert.equal(shell.code, 255);
        console.log(`      cut ${Math.round(ms)} ms after the call`);
        assert.notEqual((await bob.coder("ssh", "bobs", "true")).code, 0);
      } finally {
        sessions.kill();
        await lab.alice.coder("delete", "bob/bobs", "--yes");
      }
    });
  });
});
