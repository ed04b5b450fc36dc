// biome-ignore-all lint/suspicious/noTemplateCurlyInString: Terraform's own syntax
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { chooseCliConfig, terraformEnvironment } from "./environment.ts";

describe("terraform's environment", () => {
  it("lets in what tools and clouds need, and no secret of the server", () => {
    const env = terraformEnvironment(
      {
        PATH: "/bin",
        AWS_PROFILE: "dev",
        MYCLOUD_TOKEN: "t",
        OTHER: "o",
        CODER_PG_CONNECTION_URL: "postgres://secret",
        PGPASSWORD: "secret",
        TF_LOG: "trace",
        TF_CLI_ARGS: "-destroy",
        TF_VAR_region: "eu",
        NODE_OPTIONS: "--inspect",
      },
      { TF_DATA_DIR: "/d" },
      ["MYCLOUD_*", "OTHER"],
    );
    assert.deepEqual(Object.keys(env).sort(), [
      ...["AWS_PROFILE", "CHECKPOINT_DISABLE", "GOGC", "GOMEMLIMIT", "MYCLOUD_TOKEN", "OTHER", "PATH"],
      ...["TF_DATA_DIR", "TF_INPUT", "TF_IN_AUTOMATION", "TF_VAR_region"],
    ]);
  });

  describe("CLI configuration", () => {
    let dir: string;
    beforeEach(async () => {
      dir = await mkdtemp(path.join(tmpdir(), "cli-config-"));
    });
    afterEach(() => rm(dir, { recursive: true }));

    it("is ours when the operator has none, or names one that isn't there", async () => {
      const own = path.join(dir, "own.rc");
      const chosen = await chooseCliConfig(
        { HOME: dir, TF_CLI_CONFIG_FILE: path.join(dir, "none") },
        own,
        '/m/"${x}',
      );
      assert.deepEqual(chosen, { path: own, own: true });
      assert.match(
        await readFile(own, "utf8"),
        /^disable_checkpoint = true\n[\s\S]*path = "\/m\/\\"\$\$\{x\}"/,
      );
      assert.equal((await stat(own)).mode & 0o777, 0o600);
    });

    it("is the operator's when there is one", async () => {
      const [named, homes] = [path.join(dir, "named"), path.join(dir, ".terraformrc")];
      await writeFile(homes, "");
      assert.equal((await chooseCliConfig({ HOME: dir }, path.join(dir, "own"))).path, homes);
      await writeFile(named, "");
      const both = { HOME: dir, CODER_TERRAFORM_CLI_CONFIG: named };
      assert.equal((await chooseCliConfig(both, path.join(dir, "own"))).path, named);
    });

    it("must exist when it was named for us", async () => {
      await assert.rejects(
        chooseCliConfig({ CODER_TERRAFORM_CLI_CONFIG: path.join(dir, "none") }, path.join(dir, "own")),
        { code: "ERR_TERRAFORM_CLI_CONFIG" },
      );
    });
  });
});
