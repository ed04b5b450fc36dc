import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { Accounts, parseGroups, parsePasswd } from "./accounts.ts";
import { failureReply } from "./errors.ts";
import { Gate } from "./gate.ts";
import { HandleTable } from "./handles.ts";
import { longNamePrefix, modeString } from "./longname.ts";
import { mountFlags } from "./mounts.ts";
import { absolutePath, realPathOfMissing } from "./paths.ts";
import { temporaryDirectory } from "./testing.ts";

const bytes = (text: string) => Buffer.from(text);

describe("names in SFTP", () => {
  it("prints modes as ls does", () => {
    assert.equal(modeString(0o100644), "-rw-r--r-- ");
    assert.equal(modeString(0o041777), "drwxrwxrwt ");
    assert.equal(modeString(0o106755), "-rwsr-sr-x ");
    assert.equal(modeString(0o107000), "---S--S--T ");
    assert.equal(modeString(0o120777), "lrwxrwxrwx ");
    assert.equal(modeString(0o010600), "prw------- ");
  });

  it("prints the time of what is new and the year of what is old", () => {
    const file = {
      mode: 0o100644,
      links: 1,
      user: "me",
      group: "a-long-group",
      sizeBytes: 12,
      modifiedAtS: 0,
    };
    const at = new Date(2024, 2, 5, 7, 8, 9).getTime() / 1000;
    const line = (ageS: number) => longNamePrefix({ ...file, modifiedAtS: at }, at + ageS);
    assert.equal(line(60), "-rw-r--r--    1 me       a-long-group       12 Mar  5 07:08 ");
    assert.equal(line(183 * 86_400), "-rw-r--r--    1 me       a-long-group       12 Mar  5  2024 ");
  });

  it("reads account files as getpwuid does: the first of an id counts, what is no entry is skipped", async () => {
    const passwd =
      "# local\nroot:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/other:\n+nis\nbad:x:zero\nme:x:1000:1000::/home/me:\n";
    assert.deepEqual(
      parsePasswd(passwd).map(({ name, uid }) => `${name} ${uid}`),
      ["root 0", "toor 0", "me 1000"],
    );
    assert.deepEqual(
      [...parseGroups("wheel:x:0:\nroot:x:0:\nme:x:1000:a,b\n\n")],
      [
        [0, "wheel"],
        [1000, "me"],
      ],
    );
    const directory = temporaryDirectory();
    try {
      const files = { passwd: path.join(directory, "passwd"), group: path.join(directory, "missing") };
      fs.writeFileSync(files.passwd, passwd);
      const accounts = new Accounts(files);
      await accounts.refresh();
      assert.deepEqual(
        [accounts.userName(0), accounts.homeOf("toor"), accounts.groupName(0)],
        ["root", "/other", undefined],
      );
      fs.writeFileSync(files.passwd, "new:x:0:0::/new:/bin/sh\n");
      await accounts.refresh();
      assert.deepEqual([accounts.userName(0), accounts.homeOf("root")], ["new", undefined]);
    } finally {
      fs.rmSync(directory, { recursive: true });
    }
  });

  it("finds a mount's flags by its device", () => {
    const info = "21 1 8:1 / / rw,nosuid - ext4 /dev/sda1 rw\n22 21 259:300 / /ro ro,relatime - ext4 x ro\n";
    assert.equal(mountFlags(info, (8 << 8) | 1), 2);
    assert.equal(mountFlags(info, 44 | (259 << 8) | (256 << 12)), 1);
    assert.equal(mountFlags(info, 77), 0);
  });

  it("puts relative paths in the directory and touches nothing else of them", () => {
    const join = (directory: string, name: string) => absolutePath(bytes(directory), bytes(name)).toString();
    assert.equal(join("/home/me", "a/../b"), "/home/me/a/../b");
    assert.equal(join("/", "a"), "/a");
    assert.equal(join("/home/me", "/x/./y"), "/x/./y");
    assert.throws(() => join("/", ""), { code: "ENOENT" });
    assert.throws(() => join("/", "x".repeat(4096)), { code: "ENAMETOOLONG" });
  });

  it("resolves links to what is missing, and gives up on loops and floods of them", async () => {
    const links: Record<string, string> = { "/a": "b/c", "/b": "/d", "/loop": "/loop", "/x": "x/y" };
    const readLink = async (name: Buffer) => {
      const target = links[name.toString()];
      if (target !== undefined) return bytes(target);
      throw Object.assign(new Error(), { code: /missing/.test(name.toString()) ? "ENOENT" : "EINVAL" });
    };
    const real = async (name: string) => (await realPathOfMissing(bytes(name), readLink)).toString();
    assert.equal(await real("/a/../missing"), "/d/missing");
    assert.equal(await real("/../.."), "/");
    await assert.rejects(real("/missing/x"), { code: "ENOENT" });
    await assert.rejects(real("/missing/"), { code: "ENOENT" });
    await assert.rejects(real("/loop"), { code: "ELOOP" });
    await assert.rejects(real("/x"), { code: "ELOOP" });
    await assert.rejects(real("/y".repeat(5_000)), { code: "ELOOP" });
  });

  it("says why behind a plain Failure, and OpenSSH's words else", () => {
    const failed = (code: string, errno: number) => failureReply(Object.assign(new Error(), { code, errno }));
    assert.deepEqual(failed("ENOSPC", -28), {
      kind: "status",
      code: 4,
      text: "Failure: no space left on device",
    });
    assert.deepEqual(failed("EACCES", -13), { kind: "status", code: 3 });
    assert.deepEqual(failureReply(new Error("no call")), { kind: "status", code: 4 });
  });

  it("gives the lowest free handle and no more than it has", () => {
    const table = new HandleTable(2);
    const file = { kind: "file", fd: 9, path: bytes("/"), append: false } as const;
    assert.deepEqual([table.reserve(), table.reserve(), table.reserve()], [0, 1, undefined]);
    assert.equal(table.get(0), undefined);
    table.set(1, file);
    table.release(0);
    assert.equal(table.reserve(), 0);
    assert.equal(table.file(1), file);
    assert.equal(table.directory(1), undefined);
    assert.deepEqual(
      [table.get(-1), table.get(2 ** 32 - 1), table.get(0.5)],
      [undefined, undefined, undefined],
    );
    assert.deepEqual(table.takeAll(), [file]);
  });

  it("lets a session run less than all sessions may", () => {
    const all = new Gate(3);
    const [a, b] = [new Gate(2, all), new Gate(2, all)];
    const started: string[] = [];
    const leaves = new Map<string, () => void>();
    const enter = (gate: Gate, name: string) =>
      gate.enter((leave) => {
        started.push(name);
        leaves.set(name, leave);
      });
    for (const name of ["a1", "a2", "a3"]) enter(a, name);
    for (const name of ["b1", "b2"]) enter(b, name);
    assert.deepEqual(started, ["a1", "a2", "b1"]);
    leaves.get("a1")!();
    assert.deepEqual(started, ["a1", "a2", "b1", "b2"]);
    leaves.get("b1")!();
    assert.deepEqual(started.slice(4), ["a3"]);
  });
});
