import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Built, build } from "./build.mjs";

describe("the bundle", function () {
  this.timeout(20_000);
  let dir = "";
  let ssh: Built["ssh"];
  before(async () => {
    dir = mkdtempSync(path.join(os.tmpdir(), "bundle-"));
    const built = await build({ force: true, outdir: path.join(dir, "dist") });
    assert.ok(built);
    ssh = built.ssh;
  });
  after(() => rmSync(dir, { recursive: true, force: true }));

  const file = (name: string) => path.join(dir, "dist", name);
  const cache = () => file(`${ssh.name}-${process.version}-${process.arch}.cache`);
  const coder = (args: string[], env: NodeJS.ProcessEnv = {}) => {
    const { NODE_OPTIONS: _, ...own } = process.env;
    const { status, stdout, stderr } = spawnSync(process.execPath, [file("coder.js"), ...args], {
      env: {
        ...own,
        CODER_CONFIG_DIR: path.join(dir, "config"),
        XDG_CACHE_HOME: path.join(dir, "cache"),
        ...env,
      },
      encoding: "utf8",
    });
    return { status, stdout, stderr };
  };

  it("`coder ssh` is one script that V8 need not compile", () => {
    // In a process of its own: V8 compares flags, and whoever ran before may have set some here.
    const check = `const { readFileSync } = require("node:fs"); const vm = require("node:vm");
      const script = new vm.Script(readFileSync(process.argv[1], "latin1"), {
        cachedData: readFileSync(process.argv[2]),
        importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
      });
      process.stdout.write(String(script.cachedDataRejected));`;
    const { NODE_OPTIONS: _, ...env } = process.env;
    const args = ["-e", check, file(`${ssh.name}.js`), cache()];
    assert.equal(spawnSync(process.execPath, args, { env, encoding: "utf8" }).stdout, "false");
  });

  it("the script is ASCII, as the launcher reads it", () => {
    assert.ok(readFileSync(file(`${ssh.name}.js`)).every((byte) => byte < 0x80));
  });

  it("`coder ssh` loads nothing that is slow to load and not needed", () => {
    const unwanted = /node_modules\/(zod|@noble\/curves|bcrypt-pbkdf|koa|knex|pino)\/|^(agent|control)\//;
    assert.deepEqual(
      ssh.inputs.filter((name) => unwanted.test(name)),
      [],
    );
  });

  it("`coder ssh` does the same with V8's cache, with one that V8 refuses, and without", () => {
    const expected = coder(["ssh", "dev"]);
    assert.equal(expected.status, 255);
    assert.match(expected.stderr, /^error: You are not logged in\./);
    assert.deepEqual(coder(["ssh", "dev"], { NODE_OPTIONS: "--max-old-space-size=200" }), expected);
    const help = coder(["ssh", "--help"]);
    assert.match(help.stdout, /--stdio/);
    rmSync(cache());
    assert.deepEqual(coder(["ssh", "dev"]), expected);
    assert.deepEqual(coder(["--global-config", path.join(dir, "other"), "ssh", "dev"]), expected);
    assert.deepEqual(coder(["ssh", "--help"]), help);
  });

  it("other commands, and none, are found", () => {
    assert.match(coder(["--help"]).stdout, /quickstart/);
    assert.equal(coder(["list"]).status, 1);
    assert.match(coder(["server", "--help"]).stdout, /--http-address/);
    assert.equal(coder(["nonsense"]).status, 1);
    assert.ok(readdirSync(file(".")).includes("relay.mjs"));
  });
});
