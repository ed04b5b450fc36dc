// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are shell variables
import assert from "node:assert/strict";
import os from "node:os";
import {
  type Account,
  baseEnvironment,
  chooseShell,
  currentAccount,
  expandPath,
  expandVariables,
  type ManifestContext,
  sessionEnvironment,
  workingDirectory,
} from "./environment.ts";

const account: Account = { username: "ada", homeDir: os.tmpdir(), shell: "/bin/sh" };
const manifest = (more: Partial<ManifestContext> = {}): ManifestContext => ({
  agent_name: "main",
  workspace_name: "dev",
  owner_username: "ada",
  directory: "",
  environment_variables: {},
  ...more,
});
const base = (inherited: NodeJS.ProcessEnv, more: Partial<ManifestContext> = {}) =>
  baseEnvironment({
    inherited,
    account,
    manifest: manifest(more),
    agentUrl: "http://c",
    binDir: "/data/bin",
  });

describe("session environment", () => {
  it("leaves out the agent's credentials and what described the agent's own terminal and parent", () => {
    const env = base({
      CODER_AGENT_TOKEN: "secret",
      CODER_SESSION_TOKEN: "secret",
      CODER_PG_CONNECTION_URL: "secret",
      npm_config_cache: "x",
      NODE_OPTIONS: "--inspect",
      SHLVL: "3",
      TMUX: "x",
      TERM: "dumb",
      KEPT: "yes",
    });
    assert.ok(!JSON.stringify(env).includes("secret"));
    for (const name of ["npm_config_cache", "NODE_OPTIONS", "SHLVL", "TMUX", "TERM"])
      assert.ok(!(name in env), name);
    assert.equal(env["KEPT"], "yes");
  });

  it("says who and where, over what was inherited", () => {
    const env = base({ USER: "other", HOME: "/other", CODER_WORKSPACE_NAME: "other" });
    assert.deepEqual(
      ["USER", "LOGNAME", "HOME", "SHELL", "CODER", "CODER_WORKSPACE_NAME", "CODER_WORKSPACE_OWNER_NAME"].map(
        (name) => env[name],
      ),
      ["ada", "ada", os.tmpdir(), "/bin/sh", "true", "dev", "ada"],
    );
    assert.equal(env["CODER_WORKSPACE_AGENT_NAME"], "main");
  });

  it("template values win and may extend what is there", () => {
    const environment_variables = { PATH: "/opt/bin:$PATH", A: "${HOME}/a", B: "$A/b$MISSING", C: "$" };
    const env = base({ PATH: "/usr/bin" }, { environment_variables });
    assert.equal(env["PATH"], "/opt/bin:/usr/bin:/data/bin");
    assert.deepEqual([env["A"], env["B"], env["C"]], [`${os.tmpdir()}/a`, `${os.tmpdir()}/a/b`, "$"]);
  });

  it("there is always a PATH", () => assert.match(base({})["PATH"], /\/usr\/bin.*:\/data\/bin$/));

  it("what the client asks for wins", () => {
    const env = sessionEnvironment({ LANG: "C", A: "b" }, { LANG: "de_DE.UTF-8" });
    assert.deepEqual([env["LANG"], env["A"]], ["de_DE.UTF-8", "b"]);
  });

  it("variables expand once, not what they expand to", () =>
    assert.equal(expandVariables("$A-${B}-$C", { A: "$B", B: "${A}" }), "$B-${A}-"));
});

describe("paths of a template", () => {
  for (const [text, expected] of [
    ["~", "/home/ada"],
    ["~/src", "/home/ada/src"],
    ["$HOME/src", "/home/ada/src"],
    ["/abs/./x/..", "/abs"],
    ["rel", "/home/ada/rel"],
    ["~other", "/home/ada/~other"],
  ])
    it(`${text} is ${expected}`, () => assert.equal(expandPath(text, {}, "/home/ada"), expected));

  it("a directory that is not there yet is replaced by home, home by the root", () => {
    const at = (directory: string, home: string) => workingDirectory(manifest({ directory }), {}, home);
    assert.equal(at("/", os.tmpdir()), "/");
    assert.equal(at("/no/such/folder", os.tmpdir()), os.tmpdir());
    assert.equal(at("", os.tmpdir()), os.tmpdir());
    assert.equal(at("", "/no/such/home"), "/");
  });
});

describe("account", () => {
  it("a shell that refuses logins or is missing is passed over", () => {
    assert.equal(
      chooseShell(["/usr/sbin/nologin", "/bin/false", "relative", "/no/such/zsh", "/bin/sh"]),
      "/bin/sh",
    );
    assert.match(chooseShell([null, undefined]), /\/(ba)?sh$/);
  });

  it("$HOME counts more than passwd, and only if it is absolute", () => {
    assert.equal(currentAccount({ HOME: "/elsewhere" }).homeDir, "/elsewhere");
    assert.equal(currentAccount({ HOME: "relative" }).homeDir, os.userInfo().homedir);
  });
});
