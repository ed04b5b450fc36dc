import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import fc from "fast-check";
import {
  type Answer,
  APPEND,
  type Asked,
  ask,
  attrs,
  buildServer,
  bytesOf,
  CREATE,
  close,
  EXCLUSIVE,
  extended,
  namesOf,
  OPENSSH_SERVER,
  onPath,
  open,
  type Program,
  type RawClient,
  READ,
  read,
  shown,
  startProgram,
  statusOf,
  string,
  TRUNCATE,
  temporaryDirectory,
  u32,
  u64,
  WRITE,
  write,
} from "./testing.ts";

const IS_ROOT = process.getuid?.() === 0;
/** Of nobody, by custom: an account that may do little. */
const NOBODY = 65_534;

/** One server of the pair, with the directory it works in. */
interface Side {
  program: Program;
  client: RawClient;
  directory: string;
}

/** What an answer says, without what must differ: the side's directory, inode times, and our longer Failure. */
function comparable(answer: Answer, directory: string): string {
  if (answer.type === 101) return shown(answer).replace(/^(status 4 Failure).*/, "$1");
  if (answer.type === 102) return "handle"; // each counts them its own way
  const hex = shown(answer);
  const own = Buffer.from(directory).toString("hex");
  return hex.replaceAll(own, "<dir>");
}

/** Without the times of files, which each side has its own. */
function timeless(answer: Answer, directory: string): string {
  const all = comparable(answer, directory);
  return answer.type === 105 ? all.slice(0, -16) : all;
}

describe("the SFTP server beside OpenSSH's", () => {
  let ours: Side;
  let theirs: Side;
  let bundle: string;

  before(async function () {
    if (!OPENSSH_SERVER) {
      console.log("      skipped: OpenSSH's sftp-server is not installed");
      return this.skip();
    }
    bundle = temporaryDirectory();
    const program = await buildServer(bundle);
    const start = async (file: string): Promise<Side> => {
      const directory = temporaryDirectory();
      const started = await startProgram(file, directory);
      return { program: started, client: started.client, directory };
    };
    ours = await start(program);
    theirs = await start(OPENSSH_SERVER);
    assert.equal(ours.directory.length, theirs.directory.length);
  });

  after(async () => {
    for (const side of [ours, theirs]) {
      if (!side) continue;
      assert.equal(await side.program.end(), 0);
      fs.rmSync(side.directory, { recursive: true, force: true });
    }
    if (bundle) fs.rmSync(bundle, { recursive: true, force: true });
  });

  /** Asks both the same. @returns our answer, after it was compared */
  async function both(what: string, asked: Asked): Promise<Answer> {
    const [a, b] = await Promise.all([ours.client.request(asked), theirs.client.request(asked)]);
    assert.equal(comparable(a, ours.directory), comparable(b, theirs.directory), what);
    return a;
  }

  const times = { times: [1_000_000_000, 1_100_000_000] as [number, number] };

  it("announces the same version and extensions", async () => {
    const versions = await Promise.all([ours, theirs].map(({ client }) => client.init()));
    // A newer or older OpenSSH may have others; those we share must come in the same words.
    assert.equal(versions[0].toString("latin1"), versions[1].toString("latin1"));
  });

  it("writes, reads and describes a file alike", async () => {
    const h = bytesOf(await both("open", open("f", WRITE | CREATE | TRUNCATE, { mode: 0o640 })));
    await both("write", write(h, 0, "hello world"));
    await both("write nothing", write(h, 3, ""));
    await both("read on a handle for writing", read(h, 0, 10));
    await both("fsetstat", ask(10, string(h), attrs(times)));
    await both("fstat", ask(8, string(h)));
    await both("fsync", extended("fsync@openssh.com", string(h)));
    await both("close", close(h));
    await both("close twice", close(h));
    await both("fstat closed", ask(8, string(h)));
    await both("fsetstat closed", ask(10, string(h), attrs(times)));
    await both("fsync closed", extended("fsync@openssh.com", string(h)));
    await both("fstatvfs closed", extended("fstatvfs@openssh.com", string(h)));
    await both("read closed", read(h, 0, 1));
    await both("write closed", write(h, 0, "x"));
    await both("readdir closed", ask(12, string(h)));
    await both("handle of another length", close(Buffer.from("abc")));
    await both("handle from elsewhere", close(u32(0xffffffff)));
    const r = bytesOf(await both("open", open("f", READ)));
    assert.equal(bytesOf(await both("read", read(r, 0, 5))).toString(), "hello");
    await both("read to the end", read(r, 6, 100));
    await both("read past the end", read(r, 11, 100));
    await both("read far past the end", read(r, 2 ** 40, 100));
    await both("read beyond what a file can have", read(r, 1n << 63n, 100));
    await both("read nothing", read(r, 0, 0));
    await both("read more than a packet", read(r, 0, 0xffffffff));
    await both("write on a handle for reading", write(r, 0, "x"));
    await both("readdir of a file", ask(12, string(r)));
    await both("stat", onPath(17, "f"));
    await both("lstat", onPath(7, "f"));
    await both("close", close(r));
  });

  it("opens alike", async () => {
    const flagSets = [0, READ, WRITE, READ | WRITE, CREATE, WRITE | CREATE, WRITE | CREATE | EXCLUSIVE];
    for (const flags of [
      ...flagSets,
      WRITE | TRUNCATE,
      READ | TRUNCATE,
      APPEND | CREATE,
      WRITE | APPEND | CREATE,
      READ | EXCLUSIVE,
    ]) {
      for (const name of [
        "new",
        "f",
        "missing/x",
        "",
        ".",
        "f/x",
        `${"n".repeat(300)}`,
        `/${"d/".repeat(3000)}`,
      ]) {
        const answer = await both(
          `open ${name.slice(0, 20)} with ${flags}`,
          open(name, flags, { mode: 0o600 }),
        );
        if (answer.type === 102) {
          await both("write", write(bytesOf(answer), 2, "abc"));
          await both("write", write(bytesOf(answer), 1, "de"));
          await both("read", read(bytesOf(answer), 0, 100));
          await both("fsetstat", ask(10, string(bytesOf(answer)), attrs(times)));
          await both("close", close(bytesOf(answer)));
        }
        if (name === "new") await both("remove", onPath(13, name));
      }
    }
    const modes = [undefined, 0, 0o777, 0o4755, 0o100644, 0o7777];
    for (const mode of modes) {
      const h = bytesOf(await both("open", open(`mode${mode}`, WRITE | CREATE, { mode })));
      await both("times", ask(10, string(h), attrs(times)));
      await both("fstat", ask(8, string(h)));
      await both("chmod", ask(10, string(h), attrs({ mode: 0o6755 })));
      await both("fstat", ask(8, string(h)));
      await both("close", close(h));
    }
  });

  it("makes, moves and removes alike", async () => {
    for (const mode of [undefined, 0o700, 0o1777, 0o40755]) {
      await both("mkdir", onPath(14, "d", attrs({ mode })));
      await both("mkdir again", onPath(14, "d", attrs({ mode })));
      await both("times", onPath(9, "d", attrs(times)));
      await both("stat", onPath(7, "d"));
      await both("rmdir", onPath(15, "d"));
    }
    await both("rmdir missing", onPath(15, "d"));
    await both("rmdir file", onPath(15, "f"));
    await both("mkdir below a file", onPath(14, "f/d", attrs()));
    await both("mkdir nothing", onPath(14, "", attrs()));
    await both("mkdir", onPath(14, "d", attrs()));
    await both("mkdir", onPath(14, "d/e", attrs()));
    await both("rmdir full", onPath(15, "d"));
    await both("remove directory", onPath(13, "d"));
    await both("remove missing", onPath(13, "missing"));
    await both("rename missing", ask(18, string("missing"), string("x")));
    await both("rename onto itself", ask(18, string("f"), string("f")));
    await both("rename", ask(18, string("f"), string("g")));
    await both("rename onto a directory", ask(18, string("g"), string("d")));
    await both("rename into nowhere", ask(18, string("g"), string("missing/g")));
    await both("rename directory", ask(18, string("d"), string("dd")));
    await both("rename directory onto a file", ask(18, string("dd"), string("g")));
    await both("rename back", ask(18, string("g"), string("f")));
    await both("posix rename missing", extended("posix-rename@openssh.com", string("missing"), string("x")));
    await both("hardlink", extended("hardlink@openssh.com", string("f"), string("h")));
    await both("hardlink again", extended("hardlink@openssh.com", string("f"), string("h")));
    await both("hardlink of a directory", extended("hardlink@openssh.com", string("dd"), string("hd")));
    await both("stat", onPath(17, "h"));
    await both("posix rename", extended("posix-rename@openssh.com", string("h"), string("mode0")));
    await both("unknown extension", extended("nothing@example.com", string("x")));
  });

  it("follows, reads and describes symbolic links alike", async () => {
    await both("symlink", ask(20, string("f"), string("l")));
    await both("symlink again", ask(20, string("f"), string("l")));
    await both("symlink to nothing", ask(20, string(""), string("l0")));
    await both("dangling", ask(20, string("nowhere"), string("dangling")));
    await both("loop", ask(20, string("loop"), string("loop")));
    await both("to a directory", ask(20, string("dd"), string("ld")));
    for (const name of ["l", "dangling", "loop", "f", "missing", "ld", ""]) {
      await both(`readlink ${name}`, onPath(19, name));
      await both(`lsetstat ${name}`, extended("lsetstat@openssh.com", string(name), attrs(times)));
      await both(
        `lsetstat mode ${name}`,
        extended("lsetstat@openssh.com", string(name), attrs({ mode: 0o700 })),
      );
      await both(`lsetstat size ${name}`, extended("lsetstat@openssh.com", string(name), attrs({ size: 1 })));
      await both(`lstat ${name}`, onPath(7, name));
      await both(`setstat ${name}`, onPath(9, name, attrs({ ...times, mode: 0o750 })));
      await both(`stat ${name}`, onPath(17, name));
      await both(`rename ${name}`, ask(18, string(name), string("moved")));
      await both(`rename back ${name}`, ask(18, string("moved"), string(name)));
    }
  });

  it("resolves paths alike", async () => {
    const names = [
      "",
      ".",
      "..",
      "/",
      "f",
      "missing",
      "missing/x",
      "missing/",
      "f/",
      "f/x",
      "f/..",
      "f/../x",
      "dd/e/..",
      "dd//e///",
    ];
    names.push(
      "./dd/./e/../..",
      "l",
      "dangling",
      "dangling/",
      "dangling/x",
      "loop",
      "ld/e",
      "ld/..",
      "ld/missing",
      "../../../../..",
    );
    names.push("n".repeat(300), `${"x/".repeat(2040)}y`, "dd/".repeat(600));
    names.push(
      "~",
      "~/f",
      "~/",
      "~root",
      "~root/x",
      "~nosuchuser",
      "~nosuchuser/x",
      "~/missing/x",
      "/etc/../etc/passwd",
    );
    for (const name of names) {
      await both(`realpath ${name.slice(0, 20)}`, onPath(16, name));
      await both(`expand-path ${name.slice(0, 20)}`, extended("expand-path@openssh.com", string(name)));
    }
  });

  it("sets attributes alike", async () => {
    const all = [{ size: 3 }, { size: 0 }, { size: 2 ** 40 }, { size: 1n << 63n }, { mode: 0o4711 }, times];
    for (const set of [
      ...all,
      { owner: [0xffffffff, 0xffffffff] as [number, number] },
      { size: 5, mode: 0o600, ...times },
      {},
    ]) {
      for (const name of ["f", "dd", "missing", ""]) {
        await both("setstat", onPath(9, name, attrs(set)));
        await both("settle times", onPath(9, name, attrs(times)));
        await both("stat", onPath(17, name));
      }
    }
    await both("extended attributes", onPath(9, "f", u32(0x80000000), u32(1), string("a"), string("b")));
  });

  it("lists a directory alike", async () => {
    const list = async (side: Side, name: string) => {
      const handle = string(bytesOf(await side.client.request(onPath(11, name))));
      const found: string[] = [];
      for (;;) {
        const answer = await side.client.request(ask(12, handle));
        if (answer.type !== 104) {
          assert.equal(statusOf(answer), 1);
          break;
        }
        for (const entry of namesOf(answer)) {
          // The times of access and of the directories above are each side's own.
          const stable =
            entry.name.toString() === ".." || entry.name.toString() === "." ? "" : entry.longName;
          found.push(
            `${entry.name.toString("hex")} ${stable} ${entry.attrs.subarray(0, 24).toString("hex")}`,
          );
        }
      }
      assert.equal(statusOf(await side.client.request(ask(12, handle))), 1);
      assert.equal(statusOf(await side.client.request(ask(4, handle))), 0);
      return found.sort();
    };
    for (const { directory } of [ours, theirs]) {
      fs.mkdirSync(path.join(directory, "many"));
      for (let i = 0; i < 500; i++) {
        const file = path.join(directory, "many", `file ${i} ${"é".repeat(i % 60)}`);
        fs.writeFileSync(file, "x".repeat(i));
        fs.utimesSync(file, 1e9, i % 2 ? Math.floor(Date.now() / 1000) - 1000 * i : 1e9 + 100_000 * i);
        fs.chmodSync(file, (i * 37) & 0o7777);
        if (i % 10 === 0 && IS_ROOT) fs.chownSync(file, i, i);
      }
      fs.symlinkSync("nowhere", path.join(directory, "many", "link"));
      fs.lutimesSync(path.join(directory, "many", "link"), 1e9, 1e9);
      fs.writeFileSync(
        Buffer.concat([Buffer.from(`${directory}/many/`), Buffer.from([0xff, 0xfe, 0x41])]),
        "",
      );
    }
    for (const name of ["many", "dd"]) assert.deepEqual(await list(ours, name), await list(theirs, name));
    for (const name of ["missing", "f", "loop", ""]) await both("opendir", onPath(11, name));
  });

  it("copies inside and tells names, limits and file systems alike", async () => {
    for (const name of ["c1", "c2"]) {
      const h = bytesOf(await both("open", open(name, READ | WRITE | CREATE | TRUNCATE)));
      await both("write", write(h, 0, "0123456789"));
      await both("close", close(h));
    }
    const from = bytesOf(await both("open", open("c1", READ)));
    const to = bytesOf(await both("open", open("c2", READ | WRITE)));
    const same = bytesOf(await both("open", open("c1", READ | WRITE)));
    const copy = (a: Buffer, at: number, length: number, b: Buffer, offset: number) =>
      extended("copy-data", string(a), u64(at), u64(length), string(b), u64(offset));
    for (const [at, length, offset] of [
      [0, 4, 2],
      [2, 0, 8],
      [20, 0, 0],
      [0, 10, 100],
    ]) {
      await both(`copy ${at} ${length} ${offset}`, copy(from, at, length, to, offset));
      await both("read", read(to, 0, 1000));
    }
    await both("onto itself", copy(to, 0, 2, to, 5));
    await both("onto the same file", copy(from, 0, 2, same, 5));
    await both("from nothing", copy(u32(77), 0, 2, to, 5));
    // Where OpenSSH's server says Success though nothing, or not everything, was copied.
    assert.equal(statusOf(await ours.client.request(copy(to, 0, 2, from, 5))), 2);
    assert.equal(statusOf(await ours.client.request(copy(from, 8, 4, to, 0))), 1);
    for (const h of [from, to, same]) await both("close", close(h));
    const ids = (...values: number[]) => string(Buffer.concat(values.map(u32)));
    await both(
      "names",
      extended("users-groups-by-id@openssh.com", ids(0, 1, 4_000_000, 65534), ids(0, 5, 77777)),
    );
    await both("no names", extended("users-groups-by-id@openssh.com", ids(), ids()));
    await both("home", extended("home-directory", string("root")));
    await both("no home", extended("home-directory", string("nosuchuser")));
    const limits = async ({ client }: Side) =>
      (await client.request(extended("limits@openssh.com"))).body.subarray(0, 24);
    assert.deepEqual(await limits(ours), await limits(theirs));
    const space = async ({ client }: Side, asked: Asked) => {
      const { body } = await client.request(asked);
      const value = (index: number) => body.readBigUInt64BE(8 * index);

      return [0, 1, 2, 5, 9, 10].map(value); // sizes and limits; not what is free, nor the id
    };
    for (const asked of [
      extended("statvfs@openssh.com", string(".")),
      extended("statvfs@openssh.com", string("/proc")),
      extended("statvfs@openssh.com", string("/dev/shm")),
    ])
      assert.deepEqual(await space(ours, asked), await space(theirs, asked));
    await both("statvfs of nothing", extended("statvfs@openssh.com", string("missing")));
  });

  it("refuses alike what the account may not do", async function () {
    if (!IS_ROOT) {
      console.log("      skipped: only root can act as another user");
      return this.skip();
    }
    for (const directory of [ours.directory, theirs.directory]) {
      const limited = path.join(directory, "limited");
      fs.mkdirSync(path.join(limited, "closed"), { recursive: true });
      fs.writeFileSync(path.join(limited, "closed", "f"), "x");
      for (const name of ["secret", "readable"]) fs.writeFileSync(path.join(limited, name), "x");
      fs.chmodSync(path.join(limited, "secret"), 0o600);
      fs.chmodSync(path.join(limited, "closed"), 0o700);
      for (const above of [directory, bundle]) fs.chmodSync(above, 0o755);
    }
    const start = async (file: string, directory: string): Promise<Side> => {
      const program = await startProgram(file, path.join(directory, "limited"), NOBODY);
      return { program, client: program.client, directory };
    };
    const pair = [
      await start(path.join(bundle, "sftp-server"), ours.directory),
      await start(OPENSSH_SERVER!, theirs.directory),
    ] as const;
    const asked = [
      ...["secret", "readable", "closed/f", "new"].flatMap((file) => [
        open(file, READ),
        open(file, WRITE | CREATE),
        ...[7, 13, 16, 17, 19].map((type) => onPath(type, file)),
        onPath(9, file, attrs({ mode: 0o777 })),
        onPath(9, file, attrs({ size: 0 })),
        onPath(9, file, attrs({ owner: [NOBODY, NOBODY] })),
        onPath(9, file, attrs({ times: [1, 2] })),
        extended("lsetstat@openssh.com", string(file), attrs({ mode: 0o777 })),
        extended("statvfs@openssh.com", string(`${file}/..`)),
        ask(18, string(file), string("moved")),
      ]),
      onPath(11, "closed"),
      onPath(14, "dir", attrs()),
      onPath(15, "closed"),
      ask(20, string("x"), string("link")),
    ];
    try {
      for (const one of asked) {
        const [a, b] = await Promise.all(pair.map(({ client }) => client.request(one)));
        const what = `${one.type} ${one.body.toString("latin1")}`;
        assert.equal(timeless(a, pair[0].directory), timeless(b, pair[1].directory), what);
      }
    } finally {
      for (const { program } of pair) await program.end();
    }
  });

  const name = fc.constantFrom("p0", "p1", "p2", "d", "d/p0", "d/p1", "d/e", "missing/p", "f0", "f1", "f2");
  // Not f0…f2: two handles on one file are as two files until the answers came.
  const movable = fc.constantFrom("p0", "p1", "p2", "d", "d/p0", "d/p1", "d/e", "missing/p");
  const slot = fc.nat(2);
  const offset = fc.nat(200);
  const text = fc.uint8Array({ minLength: 1, maxLength: 60 });
  const mode = fc.constantFrom(0o600, 0o644, 0o700, 0o4755);
  const flags = fc.constantFrom(
    READ,
    READ | WRITE | CREATE,
    WRITE | CREATE | TRUNCATE,
    READ | WRITE | APPEND | CREATE,
  );
  type Step = (handles: Buffer[]) => Asked;
  const step: fc.Arbitrary<Step> = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.tuple(slot, offset, text).map(
        ([i, at, data]): Step =>
          (h) =>
            write(h[i], at, data),
      ),
    },
    {
      weight: 6,
      arbitrary: fc.tuple(slot, offset, offset).map(
        ([i, at, length]): Step =>
          (h) =>
            read(h[i], at, length),
      ),
    },
    slot.map(
      (i): Step =>
        (h) =>
          ask(8, string(h[i])),
    ),
    slot.map(
      (i): Step =>
        (h) =>
          close(h[i]),
    ),
    fc.tuple(slot, fc.nat(150)).map(
      ([i, size]): Step =>
        (h) =>
          ask(10, string(h[i]), attrs({ size })),
    ),
    fc.tuple(slot, slot, offset, offset).map(
      ([i, j, at, to]): Step =>
        (h) =>
          extended("copy-data", string(h[i]), u64(at), u64(0), string(h[j]), u64(to)),
    ),
    fc.tuple(name, mode).map(
      ([path, m]): Step =>
        () =>
          onPath(9, path, attrs({ mode: m })),
    ),
    fc.tuple(name, fc.nat(100)).map(
      ([path, size]): Step =>
        () =>
          onPath(9, path, attrs({ size })),
    ),
    fc.tuple(fc.constantFrom(7, 13, 15, 16, 17, 19), name).map(
      ([type, path]): Step =>
        () =>
          onPath(type, path),
    ),
    fc.tuple(name, mode).map(
      ([path, m]): Step =>
        () =>
          onPath(14, path, attrs({ mode: m })),
    ),
    fc.tuple(fc.constantFrom(18, 20), movable, movable).map(
      ([type, a, b]): Step =>
        () =>
          ask(type, string(a), string(b)),
    ),
    fc.tuple(fc.constantFrom("posix-rename@openssh.com", "hardlink@openssh.com"), movable, movable).map(
      ([what, a, b]): Step =>
        () =>
          extended(what, string(a), string(b)),
    ),
  );
  const round = fc.record({ opens: fc.tuple(flags, flags, flags), burst: fc.array(step, { maxLength: 30 }) });

  /** Types, modes, links and contents of all below. */
  function tree(directory: string): string[] {
    return fs
      .readdirSync(directory, { recursive: true, encoding: "utf8" })
      .sort()
      .map((entry) => {
        const full = path.join(directory, entry);
        const stats = fs.lstatSync(full);
        const content = stats.isFile()
          ? fs.readFileSync(full, "hex")
          : stats.isSymbolicLink()
            ? fs.readlinkSync(full)
            : "";
        return `${entry} ${stats.mode.toString(8)} ${stats.nlink} ${content}`;
      });
  }

  /** Sends each burst at once. @returns all answers, times of files left out */
  async function play({ client, directory }: Side, rounds: { opens: number[]; burst: Step[] }[]) {
    const answers: string[] = [];
    const told = (answer: Answer) => timeless(answer, directory);
    for (const { opens, burst } of rounds) {
      const handles: Buffer[] = [];
      for (const [i, flag] of opens.entries()) {
        const answer = await client.request(open(`f${i}`, flag, { mode: 0o644 }));
        answers.push(told(answer));
        handles.push(answer.type === 102 ? Buffer.from(bytesOf(answer)) : u32(4_000_000));
      }
      answers.push(...(await Promise.all(burst.map((make) => client.request(make(handles))))).map(told));
      for (const handle of handles) answers.push(told(await client.request(close(handle))));
    }
    return { answers, tree: tree(directory) };
  }

  it("answers any pipelined requests alike, in their order, and leaves the same files", async function () {
    this.timeout(60_000);
    await fc.assert(
      fc.asyncProperty(fc.array(round, { minLength: 1, maxLength: 4 }), async (rounds) => {
        const clear = () => {
          for (const { directory } of [ours, theirs])
            for (const entry of fs.readdirSync(directory))
              fs.rmSync(path.join(directory, entry), { recursive: true, force: true });
        };
        clear();
        const before = ours.client.answered.length;
        const [a, b] = await Promise.all([play(ours, rounds), play(theirs, rounds)]);
        assert.deepEqual(a, b);
        const ids = ours.client.answered.slice(before);
        assert.deepEqual(
          ids,
          [...ids].sort((x, y) => x - y),
        );
        clear();
      }),
      { numRuns: 60 },
    );
  });
});
