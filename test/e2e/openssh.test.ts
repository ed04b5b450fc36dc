// The stock OpenSSH client and what people put on top of it, against one workspace: as to a plain host.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { processesWith, SshLab } from "./lab.ts";
import { freePort } from "./outage.ts";
import { hasSshd, Sshd } from "./sshd.ts";
import { poll, Tmux } from "./tmux.ts";

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const BIG_BYTES = 200_000_000;
const MANY_FILES = 10_000;
const SESSIONS_AT_ONCE = 50;

/** A folder of `count` small files in 100 folders, no two alike. */
function manyFiles(dir: string, count: number): void {
  for (let i = 0; i < count; i++) {
    const folder = path.join(dir, `d${i % 100}`);
    if (i < 100) mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, `f${i}.txt`), `file ${i}\n`.repeat(1 + (i % 40)));
  }
}

describe("the OpenSSH client", function () {
  this.timeout(300_000);
  let lab: SshLab;
  let tmux: Tmux;
  const unique = () => String(500_000 + Math.floor(Math.random() * 400_000));

  before(async () => {
    lab = await SshLab.start({ direct: true });
    tmux = new Tmux(lab.sandbox, { CODER_CONFIG_DIR: lab.alice.configDir });
  });
  after(async () => {
    tmux?.close();
    await lab?.close();
  });

  describe("commands", () => {
    it("ssh coder.dev runs a command and returns its output and its exit code", async () => {
      const done = await lab.run("ssh coder.dev 'echo out; echo err >&2; exit 7'");
      assert.deepEqual([done.code, done.stdout, done.stderr], [7, "out\n", "err\n"]);
    });

    it("a command's environment is a session's: home, user, CODER, SSH_CONNECTION", async () => {
      const done = await lab.must(
        "ssh coder.dev 'cd; pwd; echo $CODER $CODER_WORKSPACE_NAME; test -n \"$SSH_CONNECTION\"'",
      );
      assert.equal(done.stdout, `${lab.home}\ntrue dev\n`);
    });

    it("SetEnv and SendEnv reach the command", async () => {
      const done = await lab.must(
        "export LC_TEST=sent; ssh -o SetEnv=FROM_SET=set -o SendEnv=LC_TEST coder.dev 'echo $FROM_SET $LC_TEST'",
      );
      assert.equal(done.stdout, "set sent\n");
    });

    it("a process ended by a signal is reported as OpenSSH does: 255", async () => {
      const done = await lab.run("ssh coder.dev 'kill -9 $$'");
      assert.equal(done.code, 255);
    });

    it("all 256 byte values pass both ways unchanged", async () => {
      const bytes = Buffer.concat([
        Buffer.from(Array.from({ length: 256 }, (_, i) => i)),
        randomBytes(100_000),
      ]);
      writeFileSync(lab.local("bytes"), bytes);
      await lab.must(`ssh coder.dev cat < ${lab.local("bytes")} > ${lab.local("back")}`);
      assert.equal(sha256(readFileSync(lab.local("back"))), sha256(bytes));
    });

    it("stdin's end reaches the command, and output after it still comes", async () => {
      const done = await lab.must("printf abc | ssh coder.dev 'wc -c; sleep 0.2; echo later'");
      assert.match(done.stdout, /^\s*3\nlater\n$/);
    });

    it("ssh -n and a closed stdin do not hang", async () => {
      assert.equal((await lab.must("ssh -n coder.dev 'cat; echo done'")).stdout, "done\n");
      assert.equal((await lab.must("ssh coder.dev 'cat; echo done' <&-")).stdout, "done\n");
    });

    it("what a command leaves in the background with its output elsewhere lives on, and does not hold ssh", async () => {
      const seconds = unique();
      await lab.must(`ssh coder.dev 'nohup sleep ${seconds} >/dev/null 2>&1 </dev/null &'`);
      const pids = processesWith(`sleep ${seconds}`);
      assert.equal(pids.length, 1);
      for (const pid of pids) process.kill(pid);
    });

    it("200 MB through cat arrive with the same checksum, to the workspace and from it", async () => {
      const file = lab.local("big");
      execFileSync("sh", ["-c", `head -c ${BIG_BYTES} /dev/urandom > '${file}'`]);
      const want = execFileSync("sha256sum", [file], { encoding: "utf8" }).split(" ")[0];
      const up = await lab.must(`ssh coder.dev 'cat > big; sha256sum big' < ${file}`);
      assert.equal(up.stdout.split(" ")[0], want);
      const down = await lab.must("ssh coder.dev cat big | sha256sum");
      assert.equal(down.stdout.split(" ")[0], want);
      rmSync(file);
      rmSync(lab.remote("big"));
    });

    it("a rekey of SSH itself in the middle of a transfer costs no byte", async () => {
      const done = await lab.must(
        "ssh -o RekeyLimit=1M coder.dev 'head -c 20000000 /dev/zero | tr \"\\0\" x' | sha256sum",
      );
      assert.equal(done.stdout.split(" ")[0], sha256(Buffer.alloc(20_000_000, "x")));
    });

    it(`${SESSIONS_AT_ONCE} sessions at once over one master connection each get their own answer`, async () => {
      const done = await lab.must(`
        ssh -fNM -S ${lab.local("m50")} coder.dev
        for i in $(seq ${SESSIONS_AT_ONCE}); do
          ssh -S ${lab.local("m50")} coder.dev "sleep 0.5; echo $i" &
          pids="$pids $!"
        done
        for pid in $pids; do wait $pid || echo failed; done
        ssh -S ${lab.local("m50")} -O exit coder.dev 2>/dev/null
      `);
      const numbers = done.stdout
        .trim()
        .split("\n")
        .map(Number)
        .sort((a, b) => a - b);
      assert.deepEqual(
        numbers,
        Array.from({ length: SESSIONS_AT_ONCE }, (_, i) => i + 1),
      );
    });

    it("twelve ssh processes at once, each with a connection of its own", async () => {
      const done = await lab.must(
        'for i in $(seq 12); do ssh coder.dev "echo $i" & pids="$pids $!"; done; for p in $pids; do wait $p || echo failed; done',
      );
      assert.deepEqual(
        done.stdout
          .trim()
          .split("\n")
          .map(Number)
          .sort((a, b) => a - b),
        Array.from({ length: 12 }, (_, i) => i + 1),
      );
    });

    it("an unknown workspace ends with 255 and says what there is to do", async () => {
      const done = await lab.run("ssh coder.nothing true");
      assert.equal(done.code, 255);
      assert.match(done.stderr, /no workspace "nothing"|not found/i);
    });
  });

  describe("terminals", () => {
    it("a shell with a prompt, a full-screen program, and a resize", async () => {
      const terminal = tmux.open(`${lab.sshCommand} -t coder.dev "env PS1='remote> ' bash --norc"`);
      await terminal.sees(/^remote>/m);
      terminal.enter("stty size; tput cols");
      await terminal.sees(/^30 100$/m);
      terminal.enter("vim -u NONE -N notes.txt");
      await terminal.sees(/"notes.txt" \[New\]/);
      terminal.type("ihello from vim");
      terminal.press("Escape");
      terminal.resize(120, 40);
      terminal.enter(":wq");
      await terminal.sees(/^remote> *$/m);
      terminal.enter("clear; stty size; cat notes.txt");
      await terminal.sees(/^40 120$[\s\S]*^hello from vim$/m);
      terminal.enter("exit 3");
      rmSync(lab.remote("notes.txt"));
    });

    it("Ctrl-C interrupts the program in the workspace, not the session", async () => {
      const terminal = tmux.open(`${lab.sshCommand} -t coder.dev "env PS1='remote> ' bash --norc"`);
      await terminal.sees(/^remote>/m);
      const seconds = unique();
      terminal.enter(`sleep ${seconds}`);
      await poll(
        () => processesWith(`sleep ${seconds}`).length > 0,
        () => "sleep runs",
      );
      terminal.press("C-c");
      await poll(
        () => processesWith(`sleep ${seconds}`).length === 0,
        () => "sleep was interrupted",
      );
      terminal.enter("echo still=$((1+1))");
      await terminal.sees(/^still=2$/m);
      terminal.enter("exit");
    });

    it("a terminal that is closed hangs up: the process in the workspace gets SIGHUP", async () => {
      const script = "trap 'echo HUP > got-signal; exit' HUP; echo ready; while :; do sleep 0.1; done";
      writeFileSync(lab.remote("hup.sh"), script);
      const terminal = tmux.open(`${lab.sshCommand} -t coder.dev sh hup.sh`);
      await terminal.sees(/^ready/m);
      terminal.close();
      await poll(
        () => existsSync(lab.remote("got-signal")),
        () => "SIGHUP arrives",
      );
      assert.equal(readFileSync(lab.remote("got-signal"), "utf8"), "HUP\n");
    });

    it("a killed ssh hangs up without a terminal, too", async () => {
      rmSync(lab.remote("got-signal"), { force: true });
      const running = lab.bash(`exec ${lab.sshCommand} coder.dev sh hup.sh`);
      await lab.sandbox.until(running, "stdout", /ready/);
      running.child.kill("SIGKILL");
      await poll(
        () => existsSync(lab.remote("got-signal")),
        () => "SIGHUP arrives",
      );
    });

    it("terminal modes of this side reach the workspace", async () => {
      const terminal = tmux.open(
        `sh -c "stty erase ^H intr ^G; ${lab.sshCommand} -t coder.dev 'stty -a; sleep 5'"`,
      );
      await terminal.sees(/intr = \^G[\s\S]*erase = \^H/);
      terminal.press("C-g");
    });
  });

  describe("files", () => {
    it("scp copies files and folders both ways, with times and modes", async () => {
      const folder = lab.local("scp");
      mkdirSync(path.join(folder, "sub"), { recursive: true });
      writeFileSync(path.join(folder, "a b.txt"), "with a space");
      writeFileSync(path.join(folder, "sub/run.sh"), "#!/bin/sh\n");
      chmodSync(path.join(folder, "sub/run.sh"), 0o750);
      utimesSync(path.join(folder, "a b.txt"), 1_600_000_000, 1_500_000_000);
      await lab.must(`scp -q -r -p ${folder} coder.dev:copied`);
      assert.equal(statSync(lab.remote("copied/a b.txt")).mtimeMs, 1_500_000_000_000);
      assert.equal(statSync(lab.remote("copied/sub/run.sh")).mode & 0o777, 0o750);
      await lab.must(`scp -q -r coder.dev:copied ${lab.local("scp-back")}`);
      assert.equal(readFileSync(lab.local("scp-back/a b.txt"), "utf8"), "with a space");
      await lab.must(`scp -q -O coder.dev:'copied/sub/run.sh' ${lab.local("old-protocol")}`);
      assert.equal(readFileSync(lab.local("old-protocol"), "utf8"), "#!/bin/sh\n");
      const missing = await lab.run(`scp -q coder.dev:nothing ${lab.local("x")}`);
      assert.notEqual(missing.code, 0);
      assert.match(missing.stderr, /nothing: No such file/);
    });

    it("sftp does all a file manager does", async () => {
      const batch = lab.local("batch");
      const one = lab.local("one");
      writeFileSync(one, randomBytes(300_000));
      writeFileSync(
        batch,
        [
          "pwd",
          "mkdir sftp",
          "cd sftp",
          `put ${one}`,
          "ln -s one soft",
          "ln one hard",
          "rename one two",
          "chmod 600 two",
          "ls -la",
          "df -h",
          `get two ${lab.local("two")}`,
          `put -p ${one} three`,
          "rm three",
          "mkdir empty",
          "rmdir empty",
          "-rmdir missing",
          "-get missing",
        ].join("\n"),
      );
      const done = await lab.must(`sftp -q -b ${batch} coder.dev`);
      assert.match(done.stdout, /Remote working directory: /);
      assert.match(done.stdout, /lrwxrwxrwx.* soft/);
      assert.match(done.stderr, /missing.*No such file|File "?.*missing"? not found/i);
      assert.equal(readlinkSync(lab.remote("sftp/soft")), "one");
      assert.equal(lstatSync(lab.remote("sftp/hard")).nlink, 2);
      assert.equal(statSync(lab.remote("sftp/two")).mode & 0o777, 0o600);
      assert.equal(sha256(readFileSync(lab.local("two"))), sha256(readFileSync(one)));
    });

    it("sftp resumes a download and an upload where they stopped", async () => {
      const bytes = randomBytes(2_000_000);
      writeFileSync(lab.remote("long"), bytes);
      writeFileSync(lab.local("long"), bytes);
      truncateSync(lab.local("long"), 700_001);
      writeFileSync(lab.local("b1"), `reget long ${lab.local("long")}\n`);
      await lab.must(`sftp -q -b ${lab.local("b1")} coder.dev`);
      assert.equal(sha256(readFileSync(lab.local("long"))), sha256(bytes));
      truncateSync(lab.remote("long"), 333_333);
      writeFileSync(lab.local("b2"), `reput ${lab.local("long")} long\n`);
      await lab.must(`sftp -q -b ${lab.local("b2")} coder.dev`);
      assert.equal(sha256(readFileSync(lab.remote("long"))), sha256(bytes));
    });

    it(`sftp puts ${MANY_FILES} files, gets a tenth of them back, and lists a folder of as many`, async () => {
      const folder = lab.local("many");
      manyFiles(folder, MANY_FILES);
      writeFileSync(
        lab.local("b3"),
        `put -r ${folder} many\nlmkdir ${lab.local("many-back")}\nget -r many/d1* ${lab.local("many-back")}/\n`,
      );
      await lab.must(`sftp -q -b ${lab.local("b3")} coder.dev >/dev/null`);
      execFileSync("diff", ["-r", folder, lab.remote("many")]);
      for (const name of readdirSync(folder).filter((one) => one.startsWith("d1")))
        execFileSync("diff", ["-r", path.join(folder, name), path.join(lab.local("many-back"), name)]);
      mkdirSync(lab.remote("flat"));
      for (let i = 0; i < MANY_FILES; i++) writeFileSync(lab.remote(`flat/n${i}`), "");
      writeFileSync(lab.local("b4"), "ls -1 flat\n");
      const listed = await lab.must(`sftp -q -b ${lab.local("b4")} coder.dev | grep -c flat/n`);
      assert.equal(listed.stdout.trim(), String(MANY_FILES));
      for (const name of ["flat", "many"]) rmSync(lab.remote(name), { recursive: true });
    }).timeout(120_000);

    it(`rsync -a brings ${MANY_FILES} small files, links and modes there, and finds nothing to do after`, async () => {
      const folder = lab.local("many");
      if (!existsSync(folder)) manyFiles(folder, MANY_FILES);
      symlinkSync("f1.txt", path.join(folder, "d1/link"));
      chmodSync(path.join(folder, "d1/f1.txt"), 0o640);
      await lab.must(`rsync -a ${folder}/ coder.dev:synced/`);
      execFileSync("diff", ["-r", folder, lab.remote("synced")]);
      assert.equal(readlinkSync(lab.remote("synced/d1/link")), "f1.txt");
      const again = await lab.must(`rsync -ain --delete ${folder}/ coder.dev:synced/`);
      assert.equal(again.stdout, "");
      await lab.must(`rsync -a coder.dev:synced/ ${lab.local("synced-back")}/`);
      execFileSync("diff", ["-r", folder, lab.local("synced-back")]);
      rmSync(lab.remote("synced"), { recursive: true });
    }).timeout(120_000);

    it("git clones, fetches and pushes", async () => {
      const identity = "-c user.name=alice -c user.email=alice@example.com";
      execFileSync("git", ["init", "-q", "--bare", "-b", "main", lab.remote("repo.git")]);
      const clone = lab.local("clone");
      await lab.must(`
        set -e
        git clone -q coder.dev:repo.git ${clone} 2>/dev/null
        cd ${clone}
        head -c 3000000 /dev/urandom > blob; echo one > file
        git add . ; git ${identity} commit -qm one; git push -q origin HEAD:main
        git clone -q ssh://coder.dev${lab.remote("repo.git")} ${lab.local("clone2")}
        cmp blob ${lab.local("clone2")}/blob
        cd ${lab.local("clone2")}; echo two > file; git ${identity} commit -qam two; git push -q
        cd ${clone}; git pull -q origin main; test "$(cat file)" = two
      `);
    });
  });

  describe("forwards", () => {
    let web: http.Server;
    let port: number;
    before((done) => {
      web = http.createServer((request, response) => {
        if (request.method === "POST") return void request.pipe(response);
        response.end(`hello ${request.url}`);
      });
      web.listen(0, "127.0.0.1", () => {
        port = (web.address() as AddressInfo).port;
        done();
      });
    });
    after((done) => {
      web.close(done);
      web.closeAllConnections();
    });
    /** Runs `use` while `ssh -N FLAGS` holds the forwards; `up` says when they are there. */
    async function holding(flags: string, script: string): Promise<string> {
      const socket = lab.local(`c${unique()}`);
      const done = await lab.must(`
        ssh -fNM -S ${socket} -o ExitOnForwardFailure=yes ${flags} coder.dev || exit 9
        ( ${script} ); code=$?
        ssh -S ${socket} -O exit coder.dev 2>/dev/null
        exit $code
      `);
      return done.stdout;
    }

    it("-L reaches a port of the workspace, byte for byte and in parallel", async () => {
      const local = await freePort();
      const curl = `curl -sf --max-time 20 http://127.0.0.1:${local}`;
      const body = lab.local("post");
      writeFileSync(body, randomBytes(5_000_000));
      const out = await holding(
        `-L ${local}:127.0.0.1:${port}`,
        `set -e; ${curl}/a; echo; for i in 1 2 3 4 5 6 7 8; do ${curl}/$i > /dev/null & done; wait
         ${curl}/ --data-binary @${body} | cmp - ${body} && echo same`,
      );
      assert.equal(out, "hello /a\nsame\n");
    });

    it("-R lets the workspace reach a port of this side; port 0 is chosen and told", async () => {
      const remote = await freePort();
      const out = await holding(
        `-R ${remote}:127.0.0.1:${port}`,
        `ssh coder.dev curl -sf --max-time 20 http://127.0.0.1:${remote}/back`,
      );
      assert.equal(out, "hello /back");
      const done = await lab.must(`ssh -o LogLevel=INFO -R 0:127.0.0.1:${port} coder.dev true`);
      assert.match(done.stderr + done.stdout, /Allocated port [1-9]\d* for remote forward/);
    });

    it("-D is a SOCKS proxy into the workspace", async () => {
      const local = await freePort();
      const out = await holding(
        `-D ${local}`,
        `curl -sf --max-time 20 --socks5-hostname 127.0.0.1:${local} http://localhost:${port}/socks`,
      );
      assert.equal(out, "hello /socks");
    });

    it("an editor's way: no terminal, a SOCKS port, a script on stdin that starts a server which stays", async () => {
      const local = await freePort();
      const seconds = unique();
      const done = await lab.must(`
        command ssh -F ${lab.sshConfig} -G coder.dev | grep -i '^proxycommand .*--stdio' > /dev/null || exit 8
        printf '%s\n' 'echo begin' 'nohup sleep ${seconds} </dev/null >server.log 2>&1 &' 'echo "pid==$!=="' 'echo end' |
          ssh -T -D ${local} -o ConnectTimeout=15 coder.dev bash
      `);
      assert.match(done.stdout, /^begin\npid==\d+==\nend\n$/);
      const pids = processesWith(`sleep ${seconds}`);
      assert.equal(pids.length, 1, "what it started stays");
      for (const pid of pids) process.kill(pid);
    });

    it("-W joins stdin and stdout to a port, and keeps what comes after our end", async () => {
      const done = await lab.must(
        `printf 'GET /w HTTP/1.0\\r\\n\\r\\n' | ssh -W 127.0.0.1:${port} coder.dev`,
      );
      assert.match(done.stdout, /hello \/w$/);
    });

    it("unix sockets are forwarded both ways", async () => {
      const here = lab.local("here.sock");
      const there = lab.remote("there.sock");
      const unix = http.createServer((_, response) => response.end("over unix"));
      await new Promise<void>((resolve) => unix.listen(there, resolve));
      try {
        assert.equal(
          await holding(`-L ${here}:${there}`, `curl -sf --max-time 20 --unix-socket ${here} http://x/`),
          "over unix",
        );
        const back = lab.remote("back.sock");
        assert.equal(
          await holding(
            `-R ${back}:${there}`,
            `ssh coder.dev curl -sf --max-time 20 --unix-socket ${back} http://x/`,
          ),
          "over unix",
        );
        await poll(
          () => !existsSync(back),
          () => "the forwarded socket is removed",
        );
      } finally {
        unix.close();
      }
    });

    it("a forward to a closed port says so and leaves the session alone", async () => {
      const closed = await freePort();
      const done = await lab.run(`ssh -W 127.0.0.1:${closed} coder.dev </dev/null`);
      assert.notEqual(done.code, 0);
      assert.match(done.stderr, /open failed: connect failed: .*(refused|closed)/i);
    });

    it("-A lends the agent's keys to the workspace, only with -A, and only while the session lasts", async () => {
      const key = lab.local("key");
      const done = await lab.must(`
        eval "$(ssh-agent -s)" >/dev/null
        trap 'kill $SSH_AGENT_PID' EXIT
        ssh-keygen -q -t ed25519 -N "" -C forwarded-key -f ${key}
        ssh-add -q ${key}
        ssh -A coder.dev 'ssh-add -l; echo "$SSH_AUTH_SOCK" > sock-path'
        ssh coder.dev 'echo "without: $SSH_AUTH_SOCK"'
      `);
      assert.match(done.stdout, /forwarded-key \(ED25519\)/);
      assert.match(done.stdout, /^without: $/m);
      const socket = readFileSync(lab.remote("sock-path"), "utf8").trim();
      assert.notEqual(socket, "");
      assert.equal(existsSync(socket), false, "the socket is gone with the session");
    });

    it("a ControlMaster carries further sessions, and forwards can be added and cancelled", async () => {
      const socket = lab.local("master");
      const local = await freePort();
      const done = await lab.must(`
        set -e
        ssh -fNM -S ${socket} coder.dev
        ssh -S ${socket} -O check coder.dev 2>&1 | tr -d '\\r'
        ssh -S ${socket} coder.dev echo over-master
        ssh -S ${socket} -O forward -L ${local}:127.0.0.1:${port} coder.dev
        curl -sf --max-time 20 http://127.0.0.1:${local}/m; echo
        ssh -S ${socket} -O cancel -L ${local}:127.0.0.1:${port} coder.dev
        curl -s --max-time 5 http://127.0.0.1:${local}/m || echo cancelled
        ssh -S ${socket} -O exit coder.dev 2>/dev/null
      `);
      assert.match(done.stdout, /^Master running.*\nover-master\nhello \/m\ncancelled\n$/);
    });

    it("-J jumps through the workspace to another host", async function () {
      if (!hasSshd()) {
        console.log("      skipped: sshd is not installed");
        return this.skip();
      }
      const sshd = await Sshd.start(lab.local("sshd"));
      try {
        const config = lab.local("jump-config");
        const option = (name: string) => sshd.options[sshd.options.indexOf(name) + 1];
        writeFileSync(
          config,
          `Include ${lab.sshConfig}\nHost target\n  HostName 127.0.0.1\n  Port ${sshd.port}\n  User ${sshd.user}\n  IdentityFile ${option("-i")}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  ProxyJump coder.dev\n`,
        );
        const done = await lab.must(`command ssh -F ${config} target 'echo jumped to $SSH_CONNECTION'`);
        assert.match(done.stdout, new RegExp(`^jumped to .* ${sshd.port}\n$`));
      } finally {
        await sshd.stop();
      }
    });
  });

  it("leaves no process of its own behind after all that", async () => {
    await poll(
      () => processesWith(`--stdio`).filter((pid) => isOurs(pid, lab.sandbox.dir)).length === 0,
      () => "every ProxyCommand ended",
    );
    assert.deepEqual(
      readdirSync(lab.sandbox.tmp).filter((name) => name.startsWith("ssh-")),
      [],
    );
  });
});

function isOurs(pid: number, dir: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8").includes(dir);
  } catch {
    return false;
  }
}
