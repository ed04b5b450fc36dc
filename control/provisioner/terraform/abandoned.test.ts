import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { waitUntilGone } from "../testing.ts";
import { removeAbandoned } from "./abandoned.ts";
import { createWorkDir } from "./workdir.ts";

const STATE = '{"version":4,"serial":7}';

describe("the folder of a job", () => {
  let base: string;
  let rescueDir: string;
  const children: ChildProcess[] = [];
  beforeEach(async () => {
    base = await mkdtemp(path.join(tmpdir(), "left-"));
    rescueDir = path.join(base, "rescued");
  });
  afterEach(async () => {
    for (const child of children.splice(0)) child.kill("SIGKILL");
    await rm(base, { recursive: true, force: true });
  });

  const folders = async () => (await readdir(base)).filter((name) => name.startsWith("coder-job-"));

  /** A provisioner in a process of its own, killed with a job's folder made. */
  async function killedProvisioner({ applies }: { applies: boolean }): Promise<string> {
    const workdir = pathToFileURL(fileURLToPath(new URL("./workdir.ts", import.meta.url))).href;
    const script = `
      import { createWorkDir } from ${JSON.stringify(workdir)};
      import { writeFile } from "node:fs/promises";
      const dir = await createWorkDir(${JSON.stringify(base)});
      await writeFile(dir.statePath, ${JSON.stringify(STATE)});
      if (${applies}) await dir.rescueAs("w-1-j-1.tfstate");
      console.log(dir.root);
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    children.push(child);
    const [line] = (await once(child.stdout!, "data")) as [Buffer];
    assert.deepEqual(await removeAbandoned(base, rescueDir), [], "its owner is alive");
    child.kill("SIGKILL");
    await once(child, "exit");
    return line.toString().trim();
  }

  it("goes when its provisioner was killed, and the state an apply may have changed is kept", async () => {
    const root = await killedProvisioner({ applies: true });
    const file = path.join(rescueDir, "w-1-j-1.tfstate");
    assert.deepEqual(await removeAbandoned(base, rescueDir), [{ root, file }]);
    assert.deepEqual(await folders(), []);
    assert.equal(await readFile(file, "utf8"), STATE);
    assert.equal((await stat(file)).mode & 0o777, 0o600);
    assert.equal((await stat(rescueDir)).mode & 0o777, 0o700);
  });

  it("goes without a trace when no apply had begun", async () => {
    const root = await killedProvisioner({ applies: false });
    assert.deepEqual(await removeAbandoned(base, rescueDir), [{ root }]);
    assert.deepEqual(await readdir(base), []);
  });

  it("stays, and is told, when its state can't be kept", async () => {
    const root = await killedProvisioner({ applies: true });
    await writeFile(rescueDir, "a file where the folder should be");
    const left = await removeAbandoned(base, rescueDir);
    assert.deepEqual(
      left.map(({ error }) => (error as NodeJS.ErrnoException).code),
      ["EEXIST"],
    );
    assert.deepEqual(await folders(), [path.basename(root)]);
  });

  it("stays while a process works in it", async () => {
    const root = await killedProvisioner({ applies: false });
    const terraform = spawn("sleep", ["30"], { cwd: path.join(root, "t") });
    children.push(terraform);
    await once(terraform, "spawn");
    assert.deepEqual(await removeAbandoned(base), []);
    terraform.kill("SIGKILL");
    await waitUntilGone(terraform.pid!);
    assert.deepEqual(await removeAbandoned(base), [{ root }]);
  });

  it("stays while it is this process's own", async () => {
    const workDir = await createWorkDir(base);
    assert.deepEqual(await removeAbandoned(base, undefined, Date.now() + 86_400_000), []);
    await workDir.remove();
    assert.deepEqual(await readdir(base), []);
  });

  it("has a minute to show its owner", async () => {
    const root = path.join(base, "coder-job-abcdef");
    await mkdir(root);
    const madeSeconds = 1_700_000_000;
    await utimes(root, madeSeconds, madeSeconds);
    assert.deepEqual(await removeAbandoned(base, undefined, (madeSeconds + 59) * 1000), []);
    assert.deepEqual(await removeAbandoned(base, undefined, (madeSeconds + 61) * 1000), [{ root }]);
  });

  it("is not a link or a file that has its name", async () => {
    await mkdir(path.join(base, "mine"));
    await symlink(path.join(base, "mine"), path.join(base, "coder-job-link01"));
    await writeFile(path.join(base, "coder-job-file01"), "");
    assert.deepEqual(await removeAbandoned(base, undefined, Date.now() + 86_400_000), []);
    assert.equal((await readdir(base)).length, 3);
  });
});
