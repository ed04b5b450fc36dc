import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { type EmbeddedOptions, type EmbeddedPostgres, startEmbeddedPostgres, WATCHDOG } from "./embedded.ts";
import { completeLibraryLinks, packagedBinaries } from "./embedded-binaries.ts";
import { findLauncher, namespacePrefix, pickAccount, setprivPrefix } from "./embedded-privilege.ts";
import { DatabaseError } from "./errors.ts";
import { newClient } from "./open.ts";

const asRoot = process.getuid?.() === 0;

async function query<T>(url: string, sql: string): Promise<T> {
  const client = newClient(url);
  await client.connect();
  try {
    return (await client.query(sql)).rows[0];
  } finally {
    await client.end();
  }
}

/** Processes whose working directory is the data folder: PostgreSQL's own, whoever started them. */
async function serversIn(pgdata: string): Promise<string[]> {
  const pids = (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name));
  const cwds = await Promise.all(pids.map((pid) => readlink(`/proc/${pid}/cwd`).catch(() => "")));
  return pids.filter((_pid, index) => cwds[index] === pgdata);
}

function isDatabaseError(code: DatabaseError["code"], pattern: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof DatabaseError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, pattern);
    return true;
  };
}

describe("embedded PostgreSQL", function () {
  this.timeout(60_000);
  let parent: string;
  let dataDir: string;
  let server: EmbeddedPostgres | undefined;
  const lines: string[] = [];
  const logger = {
    debug: (line: string) => void lines.push(line),
    warn: (line: string) => void lines.push(line),
    error: (line: string) => void lines.push(line),
  };
  const start = async (options: Partial<EmbeddedOptions> = {}): Promise<EmbeddedPostgres> => {
    server = await startEmbeddedPostgres({ dataDir, logger, unsafeNoSync: true, ...options });
    return server;
  };
  before(async () => {
    parent = await mkdtemp(path.join(os.tmpdir(), "coder-test-embedded-")); // 0700, like root's home
    dataDir = path.join(parent, "data");
  });
  afterEach(async () => {
    await server?.stop();
    server = undefined;
  });
  after(async () => {
    // Only a failed test leaves one.
    for (const pid of await serversIn(path.join(dataDir, "pgdata")).catch(() => []))
      process.kill(Number(pid), "SIGQUIT");
    await rm(parent, { recursive: true, force: true });
  });
  const socketDir = (url: string): string => new URL(url.replace("@/", "@h/")).searchParams.get("host")!;

  it("starts below a 0700 folder, on a unix socket only, in UTC and UTF8, with its secrets in 0600", async () => {
    const { connectionUrl, major } = await start();
    assert.equal(major, 18);
    assert.deepEqual(
      await query(
        connectionUrl,
        "select current_database() as name, current_setting('listen_addresses') as tcp, current_setting('timezone') as tz, " +
          "current_setting('server_encoding') as encoding, current_setting('password_encryption') as hash, " +
          "(select datlocale from pg_database where datname = 'coder') as locale",
      ),
      { name: "coder", tcp: "", tz: "UTC", encoding: "UTF8", hash: "scram-sha-256", locale: "C.UTF-8" },
    );
    const sockets = socketDir(connectionUrl);
    assert.ok(Buffer.byteLength(path.join(sockets, ".s.PGSQL.5432")) < 108);
    assert.equal((await stat(sockets)).mode & 0o777, 0o700);
    assert.equal((await stat(path.join(dataDir, "password"))).mode & 0o777, 0o600);
    assert.equal((await stat(path.join(dataDir, "pgdata"))).mode & 0o777, 0o700);
    await assert.rejects(query(connectionUrl.replace(/:[^:@]+@/, ":wrong@"), "select 1"), { code: "28P01" });
    await query(connectionUrl, "create table kept as select 42 as answer");
    await server!.stop();
    await assert.rejects(stat(sockets), { code: "ENOENT" });
    const password = (await readFile(path.join(dataDir, "password"), "utf8")).trim();
    assert.ok(!lines.join("\n").includes(password), "the password reached the log");
  });

  it("keeps data and password over a restart; loopback with a port works too", async () => {
    const { connectionUrl } = await start({ listen: "loopback" });
    assert.match(connectionUrl, /@127\.0\.0\.1:[0-9]+\/coder$/);
    assert.deepEqual(await query(connectionUrl, "select answer from kept"), { answer: 42 });
  });

  it("refuses a folder another server uses, and leaves that server alone", async () => {
    const { connectionUrl } = await start();
    await assert.rejects(
      startEmbeddedPostgres({ dataDir }),
      isDatabaseError("ERR_DATABASE_IN_USE", /another server uses.*\d+.*folder of its own/),
    );
    assert.deepEqual(await query(connectionUrl, "select answer from kept"), { answer: 42 });
  });

  it("starts over a lock file whose process number somebody else has now", async () => {
    const lock = path.join(dataDir, "pgdata/postmaster.pid");
    await writeFile(lock, `${process.pid}\n${dataDir}/pgdata\n1\n5432\n/nowhere\n\n 1 1\nready   \n`);
    const { connectionUrl } = await start();
    assert.deepEqual(await query(connectionUrl, "select answer from kept"), { answer: 42 });
  });

  it("shows the server's own words when it can't start", async () => {
    const conf = path.join(dataDir, "pgdata/postgresql.conf");
    const before = await readFile(conf, "utf8");
    await writeFile(conf, `${before}\nmax_wal_senders = many\n`);
    await assert.rejects(start(), isDatabaseError("ERR_DATABASE_START", /max_wal_senders/));
    await writeFile(conf, before);
  });

  it("refuses data of another major version before touching it", async () => {
    const other = path.join(parent, "other");
    await mkdir(path.join(other, "pgdata"), { recursive: true });
    await writeFile(path.join(other, "pgdata/PG_VERSION"), "12\n");
    await assert.rejects(
      startEmbeddedPostgres({ dataDir: other }),
      isDatabaseError("ERR_DATABASE_START", /made by PostgreSQL 12.*pg_dump/),
    );
    await writeFile(path.join(parent, "file"), "");
    await assert.rejects(
      startEmbeddedPostgres({ dataDir: path.join(parent, "file") }),
      isDatabaseError("ERR_DATABASE_START", /can't use the database folder/),
    );
  });

  it("runs under an unprivileged uid when user namespaces are off, and goes back to root's files after", async function () {
    if (!asRoot) {
      console.log("      skipped: only root needs it");
      return this.skip();
    }
    const first = await start({ launcher: "setpriv" });
    assert.deepEqual(await query(first.connectionUrl, "select answer from kept"), { answer: 42 });
    assert.notEqual((await stat(path.join(dataDir, "pgdata/base"))).uid, 0);
    await first.stop();
    await start({ launcher: "user-namespace" });
    assert.equal((await stat(path.join(dataDir, "pgdata/base"))).uid, 0);
  });

  describe("whose owner is killed", () => {
    let owner: ChildProcess | undefined;
    afterEach(() => void owner?.kill("SIGKILL"));

    it("ends too, cleanly, with its socket's folder, and the next start doesn't wait for anybody", async function () {
      if (process.platform !== "linux") {
        console.log("      skipped: looks for processes in /proc");
        return this.skip();
      }
      const script = `
        import { startEmbeddedPostgres } from ${JSON.stringify(fileURLToPath(new URL("embedded.ts", import.meta.url)))};
        const { connectionUrl } = await startEmbeddedPostgres({ dataDir: process.argv[1] });
        console.log(connectionUrl);`;
      owner = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "--eval", script, dataDir], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const [url] = (await once(createInterface({ input: owner.stdout! }), "line")) as [string];
      assert.ok((await serversIn(path.join(dataDir, "pgdata"))).length > 0);
      owner.kill("SIGKILL");
      await once(owner, "exit");
      lines.length = 0;
      const next = await start(); // waits for the old one by itself
      assert.deepEqual(await query(next.connectionUrl, "select answer from kept"), { answer: 42 });
      assert.doesNotMatch(lines.join("\n"), /not properly shut down/);
      await next.stop();
      await assert.rejects(stat(socketDir(url)), { code: "ENOENT" });
      assert.deepEqual(await serversIn(path.join(dataDir, "pgdata")), []);
    });
  });

  it("leaves no watchdog behind, however soon the server ends and whoever ends first", async function () {
    if (process.platform !== "linux") {
      console.log("      skipped: looks for processes in /proc");
      return this.skip();
    }
    // A server that ends at once meets a watcher that has barely begun: signals are easily lost there.
    const groups: string[] = [];
    for (let round = 0; round < 40; round++) {
      const args = ["-c", WATCHDOG, "sh", "", "/bin/true"];
      const sh = spawn("/bin/sh", args, { detached: true, stdio: ["pipe", "ignore", "ignore"] });
      groups.push(String(sh.pid));
      if (round % 2 === 0) sh.stdin.destroy();
      await once(sh, "exit");
      sh.stdin.destroy();
    }
    const living = async (): Promise<string[]> => {
      const pids = (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name));
      const stats = await Promise.all(
        pids.map((pid) => readFile(`/proc/${pid}/stat`, "utf8").catch(() => "")),
      );
      const fields = stats.map((text) => text.slice(text.lastIndexOf(")") + 2).split(" "));
      return pids.filter((_pid, i) => groups.includes(fields[i]![2]!) && fields[i]![0] !== "Z");
    };
    const deadline = performance.now() + 5_000;
    while ((await living()).length > 0 && performance.now() < deadline) await new Promise(setImmediate);
    const left = await living();
    for (const pid of left) process.kill(Number(pid), "SIGKILL");
    assert.deepEqual(left, []);
  });

  it("makes missing library links in the package, or beside the data when the package is read-only", async () => {
    const pkg = path.join(parent, "package");
    const spare = path.join(parent, "lib");
    await mkdir(path.join(pkg, "native/lib"), { recursive: true });
    const links = [{ source: "native/lib/libx.so.1.2", target: "native/lib/libx.so.1" }];
    await writeFile(path.join(pkg, "native/pg-symlinks.json"), JSON.stringify(links));
    assert.deepEqual(await completeLibraryLinks(pkg, spare), []);
    assert.equal(await readlink(path.join(pkg, "native/lib/libx.so.1")), "libx.so.1.2");
    assert.deepEqual(await completeLibraryLinks(pkg, spare), []);
    if (process.platform !== "linux") return;
    await rm(path.join(pkg, "native/lib"), { recursive: true });
    await symlink("/sys/kernel", path.join(pkg, "native/lib")); // nobody, not even root, makes links there
    assert.deepEqual(await completeLibraryLinks(pkg, spare), [spare]);
    assert.equal(await readlink(path.join(spare, "libx.so.1")), path.join(pkg, "native/lib/libx.so.1.2"));
  });

  it("has every program and library link it needs in this installation", async () => {
    const found = await packagedBinaries(path.join(parent, "unused"));
    for (const program of [found.initdb, found.postgres])
      assert.ok((await stat(program)).mode & 0o100, program);
  });
});

describe("running PostgreSQL as root", () => {
  const passwd = "root:x:0:0::/root:/bin/sh\nbroken\nann:x:1000:1000::/:\nnobody:x:65534:65534::/:\n";

  it("appears as an account that is listed, since initdb looks its own up", () => {
    assert.deepEqual(pickAccount(passwd), { uid: 65534, gid: 65534 });
    assert.deepEqual(pickAccount(`${passwd}postgres:x:101:104::/:\n`), { uid: 101, gid: 104 });
    assert.deepEqual(pickAccount("ann:x:1000:1000::/:\n"), { uid: 1000, gid: 1000 });
    assert.equal(pickAccount("root:x:0:0::/root:/bin/sh\n"), undefined);
  });

  it("reaches programs and data below a 0700 folder either way, as access(2) sees it too", async function () {
    if (!asRoot || process.platform !== "linux") {
      console.log("      skipped: only root on Linux needs it");
      return this.skip();
    }
    const closed = await mkdtemp(path.join(os.tmpdir(), "coder-test-closed-"));
    try {
      const program = path.join(closed, "postgres");
      // initdb asks access(2), which looks at other rights than running the program does.
      const asks = `require("fs").accessSync(${JSON.stringify(program)}, 1); console.log("x (PostgreSQL) 18.4")`;
      await writeFile(program, `#!${process.execPath}\n${asks}\n`, { mode: 0o700 });
      for (const kind of ["user-namespace", "setpriv"] as const) {
        const found = await findLauncher(program, closed, {}, kind);
        assert.deepEqual([found.kind, found.major], [kind, 18]);
      }
      await assert.rejects(
        findLauncher(path.join(closed, "missing"), closed, {}),
        isDatabaseError(
          "ERR_DATABASE_START",
          /refuses to run as root.*CODER_PG_CONNECTION_URL.*user-namespace:.*setpriv:/s,
        ),
      );
    } finally {
      await rm(closed, { recursive: true });
    }
  });

  it("keeps no capability but the one to read below root's folders", () => {
    const prefix = setprivPrefix({ uid: 101, gid: 104 });
    assert.ok(
      prefix.includes("--inh-caps=-all,+dac_override") &&
        prefix.includes("--ambient-caps=-all,+dac_override"),
    );
    assert.ok(prefix.includes("--reuid=101") && prefix.includes("--no-new-privs"));
    assert.deepEqual(namespacePrefix({ uid: 101, gid: 104 }), [
      "unshare",
      "--user",
      "--map-user=101",
      "--map-group=104",
    ]);
  });
});
