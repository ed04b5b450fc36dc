import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, readlink, realpath, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { tarOf, templateTar } from "../testing.ts";
import { createWorkDir, readTemplate, unpackTemplate } from "./workdir.ts";

type Entries = Parameters<typeof tarOf>[0];
const file = (name: string, content = "x"): Entries[number] => ({ header: { name }, content });
const link = (name: string, linkname: string): Entries[number] => ({
  header: { name, type: "symlink", linkname },
});

describe("unpacking a template", () => {
  let parent: string;
  let dir: string;
  beforeEach(async () => {
    parent = await realpath(await mkdtemp(path.join(tmpdir(), "unpack-")));
    dir = await mkdtemp(path.join(parent, "t-"));
  });
  afterEach(() => rm(parent, { recursive: true, force: true }));

  it("writes files, folders and inner links, keeps the owner's execute bit, and leaves state out", async () => {
    const archive = await tarOf([
      file("./main.tf", "# main"),
      { header: { name: "scripts/run.sh", mode: 0o755 }, content: "#!/bin/sh" },
      { header: { name: "empty/", type: "directory" } },
      link("scripts/main", "../main.tf"),
      { header: { name: "copy.tf", type: "link", linkname: "main.tf" } },
      file(".terraform/providers/x"),
      file("terraform.tfstate"),
      file("terraform.tfstate.backup"),
      file(".terraform.lock.hcl"),
    ]);
    await unpackTemplate(archive, dir);
    assert.deepEqual((await readdir(dir)).sort(), [
      ".terraform.lock.hcl",
      "copy.tf",
      "empty",
      "main.tf",
      "scripts",
    ]);
    assert.equal((await stat(path.join(dir, "scripts/run.sh"))).mode & 0o777, 0o700);
    assert.equal((await stat(path.join(dir, "main.tf"))).mode & 0o777, 0o600);
    assert.equal(await readlink(path.join(dir, "scripts/main")), "../main.tf");
    assert.equal(await readFile(path.join(dir, "copy.tf"), "utf8"), "# main");
  });

  it("takes a folder that claims to have content for a folder, and waits for nothing", async () => {
    const archive = Buffer.from(
      await tarOf([{ header: { name: "d/", type: "directory" } }, file("d/main.tf", "# main")]),
    );
    archive.write("00000200000", 124); // the folder's size, in octal
    archive.write("        ", 148);
    const sum = archive.subarray(0, 512).reduce((total, byte) => total + byte, 0);
    archive.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
    await unpackTemplate(archive, dir);
    assert.equal(await readFile(path.join(dir, "d/main.tf"), "utf8"), "# main");
  });

  const hostile: [string, Entries][] = [
    ["an absolute path", [file("/etc/evil")]],
    ["a drive letter", [file("C:\\evil")]],
    ["a parent folder", [file("../evil")]],
    ["a parent folder in the middle", [file("a/../../evil")]],
    ["a parent folder with backslashes", [file("a\\..\\..\\evil")]],
    ["a link to an absolute path", [link("a", "/etc/passwd")]],
    ["a link to a parent", [link("a", "../../etc/passwd")]],
    [
      "a link that leaves through another link",
      [file("d/e/f"), link("d/e/s", "../.."), link("t", "d/e/s/../..")],
    ],
    ["a link to itself", [link("a", "a")]],
    ["a link to nothing", [link("a", "b")]],
    ["a file written through a link", [link("a", "."), file("a/x")]],
    ["a file written through a link to outside", [link("a", ".."), file("a/evil")]],
    ["a hard link to outside", [{ header: { name: "a", type: "link", linkname: "../../etc/passwd" } }]],
    ["a hard link to a link", [link("a", "main.tf"), { header: { name: "b", type: "link", linkname: "a" } }]],
    ["a hard link to nothing", [{ header: { name: "b", type: "link", linkname: "a" } }]],
    ["a character device", [{ header: { name: "a", type: "character-device" } }]],
    ["a block device", [{ header: { name: "a", type: "block-device" } }]],
    ["a named pipe", [{ header: { name: "a", type: "fifo" } }]],
    ["a very long name", [file("n".repeat(1025))]],
    ["very deep folders", [file(`${"a/".repeat(65)}x`)]],
    ["a file in the place of a folder", [file("a/b"), file("a")]],
    ["too many files", Array.from({ length: 21 }, (_, index) => file(`f${index}`))],
    ["too many bytes", [file("a", "y".repeat(600)), file("b", "y".repeat(600))]],
    [
      "hard links that multiply a file",
      [
        file("a", "y".repeat(400)),
        ...["b", "c"].map((name) => ({ header: { name, type: "link" as const, linkname: "a" } })),
      ],
    ],
  ];
  for (const [what, entries] of hostile)
    it(`refuses ${what} and writes nothing outside`, async () => {
      await assert.rejects(
        unpackTemplate(await tarOf(entries), dir, { maxEntries: 20, maxTotalBytes: 1000 }),
        {
          code: "ERR_TEMPLATE_ARCHIVE",
        },
      );
      assert.deepEqual(await readdir(parent), [path.basename(dir)]);
    });

  for (const [what, start] of [
    ["gzip", [0x1f, 0x8b]],
    ["zip", [0x50, 0x4b]],
  ] as const)
    it(`says what to do about a ${what} file`, () =>
      assert.rejects(unpackTemplate(new Uint8Array([...start, 0, 0]), dir), /upload a plain tar/));

  it("meets damaged archives with one error and nothing else", async () => {
    const archive = await templateTar({ "main.tf": "a".repeat(700), "b/c.tf": "b" });
    const damage = fc.tuple(
      fc.nat(archive.length - 1),
      fc.integer({ min: 1, max: 255 }),
      fc.nat(archive.length),
    );
    await fc.assert(
      fc.asyncProperty(damage, async ([at, change, length]) => {
        const broken = archive.slice();
        broken[at]! ^= change;
        const into = await mkdtemp(path.join(parent, "p-"));
        await unpackTemplate(broken.subarray(0, length), into).catch((error: { code?: string }) =>
          assert.equal(error.code, "ERR_TEMPLATE_ARCHIVE"),
        );
        await rm(into, { recursive: true });
      }),
      { numRuns: 60 },
    );
  });

  it("finds the README, and asks for a folder with Terraform files", async () => {
    await unpackTemplate(await templateTar({ "main.tf": "", "ReadMe.md": "# Hi" }), dir);
    assert.deepEqual(await readTemplate(dir), { files: [{ name: "main.tf", text: "" }], readme: "# Hi" });
    await assert.rejects(readTemplate(parent), /push the folder that holds main\.tf/);
  });

  it("happens in a private folder that goes with everything in it", async () => {
    const workDir = await createWorkDir(parent);
    for (const folder of [workDir.root, workDir.socketDir])
      assert.equal((await stat(folder)).mode & 0o777, 0o700);
    await workDir.remove();
    assert.deepEqual(await readdir(parent), [path.basename(dir)]);
  });
});
