import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { AGENT_PLATFORMS, agentScript, agentScripts } from "./agent-script.ts";

const sh = promisify(execFile);

describe("an agent's init script", () => {
  let dir: string;
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "agent's script-"));
  });
  afterEach(() => rm(dir, { recursive: true }));

  async function executable(name: string, text: string): Promise<string> {
    const file = path.join(dir, name);
    await writeFile(file, `#!/bin/sh\n${text}\n`);
    await chmod(file, 0o755);
    return file;
  }

  /** Runs it the way a workspace does, with the provider's placeholders filled in. */
  async function run(script: string): Promise<string> {
    const text = script
      .replaceAll(`\${ACCESS_URL}`, "http://coder.test/")
      .replaceAll(`\${AUTH_TYPE}`, "token");
    const { stdout } = await sh("/bin/sh", ["-c", text], {
      env: { PATH: `${dir}:/usr/bin:/bin`, TMPDIR: dir },
    });
    return stdout;
  }

  it("downloads the agent of its platform and becomes it", async () => {
    await executable("agent", `echo "$CODER_AGENT_URL $CODER_AGENT_AUTH $*"`);
    await executable(
      "curl",
      `for url do :; done; echo "$url" > "${dir}/url"
while [ "$1" != -o ]; do shift; done; cp "${dir}/agent" "$2"`,
    );
    assert.equal(await run(agentScript({ os: "linux", arch: "arm64" })), "http://coder.test/ token agent\n");
    assert.equal(await readFile(path.join(dir, "url"), "utf8"), "http://coder.test/bin/coder-linux-arm64\n");
  });

  it("uses this machine's own command where its files exist, whatever their names", async () => {
    const command = await executable("own node", `echo "own $*"`);
    const bundle = await executable("coder.js", "");
    const script = agentScript({ os: "linux", arch: "amd64", localCommand: [command, bundle] });
    assert.equal(await run(script), `own ${bundle} agent\n`);
    await rm(bundle);
    await executable("curl", "exit 0");
    await executable("chmod", "exit 7"); // the download's next step: it came that far
    await assert.rejects(run(script), { code: 7 });
  });

  it("exists for every platform, without the token", () => {
    const scripts = agentScripts(["/usr/bin/node", "/opt/coder.js"]);
    assert.equal(scripts.size, AGENT_PLATFORMS.length);
    for (const [platform, text] of scripts) {
      const [os, arch] = platform.split("_");
      assert.match(text, new RegExp(`bin/coder-${os}-${arch}`));
      assert.doesNotMatch(text, /AGENT_TOKEN/);
    }
    assert.equal([...scripts.values()].filter((text) => text.includes("/opt/coder.js")).length, 1);
  });
});
