import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import {
  type Answer,
  APPEND,
  ask,
  attrs,
  bytesOf,
  CREATE,
  close,
  EXCLUSIVE,
  extended,
  INIT,
  type InProcess,
  namesOf,
  onPath,
  open,
  packet,
  READ,
  read,
  shown,
  startInProcess,
  statusOf,
  string,
  TRUNCATE,
  temporaryDirectory,
  textOf,
  u32,
  WRITE,
  write,
} from "./testing.ts";

const openFds = () => fs.readdirSync("/proc/self/fd").length;

describe("an SFTP session", () => {
  let directory: string;
  const running: InProcess[] = [];

  beforeEach(() => {
    directory = temporaryDirectory();
  });
  afterEach(async () => {
    for (const one of running.splice(0)) {
      one.session.resume();
      one.session.hangUp();
      await one.exited;
    }
    fs.rmSync(directory, { recursive: true, force: true });
  });

  async function start(
    options: { maxHandles?: number; directory?: string; home?: string } = {},
  ): Promise<InProcess> {
    const one = startInProcess({ directory, home: directory, ...options });
    running.push(one);
    await one.client.init();
    return one;
  }
  const inside = (name: string) => path.join(directory, name);
  const openFile = async (one: InProcess, name: string, flags: number) =>
    Buffer.from(bytesOf(await one.client.request(open(name, flags))));

  it("ends with status 0 once all that came before the end of input is answered", async () => {
    const one = await start();
    const h = await openFile(one, "f", WRITE | CREATE);
    const answers = Array.from({ length: 300 }, (_, i) =>
      one.client.request(write(h, 1_000 * i, Buffer.alloc(1_000, i))),
    );
    one.session.endInput();
    assert.deepEqual(await one.exited, { kind: "exited", status: 0 });
    assert.deepEqual(
      (await Promise.all(answers)).filter((answer) => statusOf(answer) !== 0),
      [],
    );
    assert.equal(fs.statSync(inside("f")).size, 300_000);
  });

  it("holds the client up while its requests are too many, and asks for more when they are answered", async () => {
    const one = await start();
    const h = await openFile(one, "f", WRITE | CREATE);
    const answers: Promise<Answer>[] = [];
    while (!one.held() && answers.length < 10_000)
      answers.push(one.client.request(write(h, 0, Buffer.alloc(200_000))));
    assert.ok(one.held());
    assert.ok(answers.length <= 12, `${answers.length} writes of 200 kB were taken`);
    await one.drained();
    await Promise.all(answers);
  });

  it("hands out nothing while paused, holds little for it, and loses none", async () => {
    const one = await start();
    fs.writeFileSync(inside("f"), Buffer.alloc(100_000, "x"));
    const h = await openFile(one, "f", READ);
    const before = process.memoryUsage().arrayBuffers;
    one.session.pause();
    let answered = 0;
    const answers = Array.from({ length: 500 }, () =>
      one.client.request(read(h, 0, 100_000)).then((answer) => {
        answered++;
        return bytesOf(answer).length;
      }),
    );
    assert.ok(one.held());
    // More turns through the thread pool than the reads that may run could need
    for (let i = 0; i < 200; i++) await fs.promises.stat(directory);
    assert.equal(answered, 0);
    const grownBytes = process.memoryUsage().arrayBuffers - before;
    assert.ok(grownBytes < 10_000_000, `${grownBytes} bytes are held`);
    one.session.resume();
    assert.deepEqual(new Set(await Promise.all(answers)), new Set([100_000]));
  });

  it("ends with status 11 and says so when the client breaks the protocol, after answering what came before", async () => {
    const broken: [Buffer, RegExp][] = [
      [u32(0x7fffffff), /packet of 2147483647 bytes/],
      [u32(0), /without a type/],
      [packet(7, u32(1), u32(100)), /ends inside a field/],
      [
        packet(200, u32(1), string("users-groups-by-id@openssh.com"), string("abc"), string("")),
        /list of ids/,
      ],
    ];
    for (const [bytes, reason] of broken) {
      const one = await start();
      const answer = one.client.request(onPath(17, "."));
      one.client.raw(bytes);
      one.client.raw(packet(13, u32(9), string("must-not-be-looked-at")));
      assert.deepEqual(await one.exited, { kind: "exited", status: 11 });
      assert.equal((await answer).type, 105);
      assert.match(one.stderr.join(""), reason);
    }
    const early = startInProcess({ directory, home: directory });
    early.client.raw(packet(17, u32(1), string(".")));
    assert.deepEqual(await early.exited, { kind: "exited", status: 11 });
  });

  it("answers what it does not know, and paths no file can have, without ending", async () => {
    const one = await start();
    assert.equal(statusOf(await one.client.request(ask(99, string("x")))), 8);
    assert.equal(statusOf(await one.client.request(extended("nothing@example.com"))), 8);
    assert.equal(statusOf(await one.client.request(onPath(17, "a\0b"))), 5);
    assert.equal(statusOf(await one.client.request(onPath(17, "x".repeat(100_000)))), 5);
    assert.equal(statusOf(await one.client.request(onPath(17, "../".repeat(1_300)))), -1);
    assert.equal(statusOf(await one.client.request(onPath(17, "."))), -1);
  });

  it("keeps at most its handles open, tells how many, and closes them when it ends", async () => {
    const one = await start({ maxHandles: 5 });
    const before = openFds();
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => one.client.request(open(`f${i}`, WRITE | CREATE))),
    );
    assert.deepEqual(
      answers.map(({ type }) => type),
      [102, 102, 102, 102, 102, 101, 101, 101],
    );
    assert.match(shown(answers[5]), /5 files are open; close some/);
    assert.equal(statusOf(await one.client.request(onPath(11, "."))), 4);
    assert.equal((await one.client.request(extended("limits@openssh.com"))).body.readBigUInt64BE(24), 5n);
    await one.client.request(close(bytesOf(answers[0])));
    assert.equal((await one.client.request(onPath(11, "."))).type, 102);
    assert.equal(openFds(), before + 5);
    one.session.hangUp();
    assert.deepEqual(await one.exited, { kind: "signaled", name: "HUP" });
    assert.equal(openFds(), before);
  });

  it("never waits at a FIFO, and takes no device for a file", async () => {
    execFileSync("mkfifo", [inside("fifo")]);
    const one = await start();
    const h = await openFile(one, "fifo", READ);
    assert.equal(statusOf(await one.client.request(read(h, 0, 100))), 4);
    assert.equal((await one.client.request(open("fifo", READ | WRITE))).type, 102);
    await one.client.request(close(h));
    assert.equal(statusOf(await one.client.request(onPath(9, "fifo", attrs({ size: 0 })))), 5);
    const zero = await openFile(one, "/dev/zero", READ);
    assert.equal(bytesOf(await one.client.request(read(zero, 1_000, 64))).length, 64);
    const full = await openFile(one, "/dev/full", WRITE);
    assert.match(shown(await one.client.request(write(full, 0, "x"))), /status 4 Failure: no space left/);
  });

  it("appends in the order of the requests, wherever they say", async () => {
    const one = await start();
    fs.writeFileSync(inside("f"), "0");
    const h = await openFile(one, "f", WRITE | APPEND);
    await Promise.all(
      "123456789".split("").map((digit) => one.client.request(write(h, 0, digit.repeat(5_000)))),
    );
    assert.equal(fs.readFileSync(inside("f"), "utf8").replaceAll(/(.)\1+/g, "$1"), "0123456789");
  });

  it("writes sparse files at offsets of any size", async () => {
    const one = await start();
    const h = await openFile(one, "f", READ | WRITE | CREATE | TRUNCATE);
    assert.equal(statusOf(await one.client.request(write(h, 2 ** 40, "end"))), 0);
    assert.equal(bytesOf(await one.client.request(read(h, 2 ** 40 + 1, 10))).toString(), "nd");
    assert.deepEqual([...bytesOf(await one.client.request(read(h, 2 ** 39, 3)))], [0, 0, 0]);
    assert.equal(statusOf(await one.client.request(write(h, 1n << 62n, "x"))), 5);
    assert.equal(statusOf(await one.client.request(write(h, (1n << 53n) - 1n, "x"))), 4 + 1);
    assert.equal(fs.statSync(inside("f")).size, 2 ** 40 + 3);
  });

  it("keeps names that are no UTF-8", async () => {
    const one = await start();
    const name = Buffer.from([0x61, 0xff, 0xc3, 0x28]);
    const target = Buffer.from([0xfe, 0x2f, 0xff]);
    await one.client.request(
      close(bytesOf(await one.client.request(open(name, WRITE | CREATE | EXCLUSIVE)))),
    );
    assert.equal(statusOf(await one.client.request(ask(20, string(target), string("link")))), 0);
    assert.deepEqual(namesOf(await one.client.request(onPath(19, "link")))[0].name, target);
    const real = namesOf(await one.client.request(onPath(16, name)))[0].name;
    assert.deepEqual(real, Buffer.concat([Buffer.from(`${directory}/`), name]));
    const dir = await one.client.request(onPath(11, "."));
    const listed = namesOf(await one.client.request(ask(12, string(bytesOf(dir)))));
    assert.deepEqual(
      listed.map((entry) => entry.name.toString("latin1")).sort(),
      [".", "..", name.toString("latin1"), "link"].sort(),
    );
  });

  it("lists a large directory in packets any client takes, each name once", async () => {
    for (let i = 0; i < 800; i++) fs.writeFileSync(inside(`${i}${"-".repeat(i % 240)}`), "");
    const one = await start();
    const h = string(bytesOf(await one.client.request(onPath(11, "."))));
    const names = new Set<string>();
    let batches = 0;
    for (
      let answer = await one.client.request(ask(12, h));
      answer.type === 104;
      answer = await one.client.request(ask(12, h))
    ) {
      assert.ok(answer.body.length < 34_000 - 9, `${answer.body.length} bytes`);
      for (const { name } of namesOf(answer)) {
        assert.ok(!names.has(name.toString()));
        names.add(name.toString());
      }
      batches++;
    }
    assert.equal(names.size, 802);
    assert.ok(batches < 20, `${batches} batches`);
  });

  it("starts in / when its directory is missing, and expands ~ to the home", async () => {
    const one = await start({ directory: inside("missing"), home: directory });
    const real = async (asked: ReturnType<typeof ask>) => textOf((await one.client.request(asked)).body, 4);
    assert.equal(await real(onPath(16, ".")), "/");
    assert.equal(await real(extended("expand-path@openssh.com", string("~/x"))), inside("x"));
    assert.equal(await real(extended("expand-path@openssh.com", string("~"))), directory);
  });

  it("answers no such file when its directory was removed", async () => {
    fs.mkdirSync(inside("gone"));
    const one = await start({ directory: inside("gone") });
    fs.rmdirSync(inside("gone"));
    assert.equal(statusOf(await one.client.request(onPath(17, "."))), 2);
    assert.equal(statusOf(await one.client.request(open("f", WRITE | CREATE))), 2);
  });

  it("does not copy a file onto itself by another name", async () => {
    fs.writeFileSync(inside("a"), "abc");
    fs.linkSync(inside("a"), inside("b"));
    const one = await start();
    const [a, b] = [await openFile(one, "a", READ), await openFile(one, "b", WRITE | APPEND)];
    const copy = extended("copy-data", string(a), Buffer.alloc(16), string(b), Buffer.alloc(8));
    assert.equal(statusOf(await one.client.request(copy)), 4);
    assert.equal(fs.readFileSync(inside("a"), "utf8"), "abc");
  });

  it("stops a copy without end when the client goes", async () => {
    const one = await start();
    const [zero, target] = [await openFile(one, "/dev/zero", READ), await openFile(one, "/dev/null", WRITE)];
    void one.client.request(
      extended("copy-data", string(zero), Buffer.alloc(16), string(target), Buffer.alloc(8)),
    );
    one.session.hangUp();
    assert.deepEqual(await one.exited, { kind: "signaled", name: "HUP" });
  });

  it("ends by a signal that would end a program, and by no other", async () => {
    const one = await start();
    one.session.signal("WINCH");
    assert.equal((await one.client.request(onPath(17, "."))).type, 105);
    one.session.signal("TERM");
    assert.deepEqual(await one.exited, { kind: "signaled", name: "TERM" });
  });

  it("takes a stream cut anywhere", async () => {
    const answers: Buffer[] = [];
    const one = startInProcess(
      { directory, home: directory },
      { output: (_, chunk) => answers.push(Buffer.from(chunk)) },
    );
    running.push(one);
    const wire = Buffer.concat([
      INIT,
      packet(3, u32(1), string("f"), u32(WRITE | CREATE), u32(0)),
      packet(6, u32(2), string(u32(0)), Buffer.alloc(8), string("content")),
      packet(4, u32(3), string(u32(0))),
    ]);
    for (const byte of wire) one.session.write(Uint8Array.of(byte));
    one.session.endInput();
    await one.exited;
    assert.equal(fs.readFileSync(inside("f"), "utf8"), "content");
    assert.ok(Buffer.concat(answers).includes(Buffer.from("Success")));
  });
});
