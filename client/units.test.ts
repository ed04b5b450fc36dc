import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Writable } from "node:stream";
import fc from "fast-check";
import { extract } from "tar-stream";
import { CoordinatorError } from "../coordinator/client.ts";
import { packDirectory } from "./archive.ts";
import { parseAddress } from "./commands/server.ts";
import { configDir, forgetSession, parseServerUrl, readLogin, writeLogin } from "./config.ts";
import { durationMsIn, formatDuration, parseDurationMs } from "./duration.ts";
import { ApiError, CliError, reportError } from "./errors.ts";
import { errorBody } from "./http.ts";
import { formatAge, formatJson, formatTable } from "./output.ts";
import { Presses } from "./presses.ts";
import { printable } from "./text.ts";
import { chooseAgent, collectParameters, parseWorkspaceName, workspaceOfHost } from "./workspace.ts";

const codeOf = (act: () => unknown): string => {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof CliError, String(error));
    return error.code;
  }
  return "none";
};

function systemError(file: string): unknown {
  try {
    return statSync(file);
  } catch (error) {
    return error;
  }
}

async function entriesOf(archive: Buffer): Promise<Record<string, { mode?: number; text: string }>> {
  const entries: Record<string, { mode?: number; text: string }> = {};
  const reader = extract();
  reader.end(archive);
  for await (const entry of reader) {
    let text = "";
    for await (const chunk of entry) text += String(chunk);
    entries[entry.header.name] = { mode: entry.header.mode, text };
  }
  return entries;
}

describe("command line", () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(path.join(os.tmpdir(), "cli-"));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  for (const [text, expected] of [
    ["dev", { owner: "me", name: "dev", agent: undefined }],
    ["alice/dev", { owner: "alice", name: "dev", agent: undefined }],
    ["alice--dev", { owner: "alice", name: "dev", agent: undefined }],
    ["dev.main", { owner: "me", name: "dev", agent: "main" }],
    ["alice/dev.main", { owner: "alice", name: "dev", agent: "main" }],
    ["alice/dev--main", { owner: "alice", name: "dev", agent: "main" }],
    ["alice--dev--main", { owner: "alice", name: "dev", agent: "main" }],
    ["alice--dev.main", { owner: "alice", name: "dev", agent: "main" }],
  ] as const)
    it(`reads the workspace name ${text}`, () => assert.deepEqual(parseWorkspaceName(text), expected));

  it("refuses names that name nothing", () => {
    for (const text of [
      "",
      "/",
      "alice/",
      "/dev",
      ".main",
      "dev.",
      "a/b/c",
      "a.b/c",
      "a--b/c",
      "a.b.c.d",
      "--",
    ])
      assert.equal(
        codeOf(() => parseWorkspaceName(text)),
        "ERR_BAD_NAME",
        text,
      );
  });

  for (const [text, expected] of [
    ["127.0.0.1:3000", { host: "127.0.0.1", port: 3000 }],
    [":80", { host: "0.0.0.0", port: 80 }],
    ["[::1]:3000", { host: "::1", port: 3000 }],
    ["localhost:0", { host: "localhost", port: 0 }],
  ] as const)
    it(`listens on ${text}`, () => assert.deepEqual(parseAddress(text), expected));

  it("refuses addresses without a port, and ports that are none", () => {
    for (const text of ["", "localhost", "::1:3000", "1.2.3.4:65536", "a:b"])
      assert.equal(
        codeOf(() => parseAddress(text)),
        "ERR_BAD_ADDRESS",
        text,
      );
  });

  it("reads durations as Go writes them, and nothing else", () => {
    assert.deepEqual(
      ["200ms", "5s", "1.5m", "2h", "1h30m", "0s"].map(parseDurationMs),
      [200, 5_000, 90_000, 7_200_000, 5_400_000, 0],
    );
    for (const text of ["5", "s", "-1s", "1d", "", "1h 30m", "1s!"])
      assert.equal(
        codeOf(() => parseDurationMs(text)),
        "ERR_BAD_DURATION",
      );
  });

  it("a duration out of range says the range", () => {
    assert.equal(durationMsIn("10s", "--x", 1_000, 60_000), 10_000);
    assert.throws(() => durationMsIn("2m", "--x", 1_000, 60_000), {
      code: "ERR_BAD_DURATION",
      message: "--x 2m is out of range",
      hint: "It goes from 1s to 1m.",
    });
    assert.deepEqual([1, 1_000, 90_000, 86_400_000].map(formatDuration), ["1ms", "1s", "90s", "24h"]);
  });

  for (const [host, affix, workspace] of [
    ["coder.dev", { prefix: "coder." }, "dev"],
    ["coder.alice--dev.main", { prefix: "coder." }, "alice--dev.main"],
    ["dev.coder", { suffix: "coder" }, "dev"],
    ["main.dev.alice.coder", { prefix: "coder.", suffix: ".coder" }, "alice/dev.main"],
    ["dev", { prefix: "coder.", suffix: "coder" }, "dev"],
    ["coder.", { prefix: "coder." }, "coder."],
  ] as const)
    it(`the host ${host} stands for the workspace ${workspace}`, () =>
      assert.equal(workspaceOfHost(host, affix), workspace));

  it("keeps what follows the first equals sign of a parameter", () => {
    assert.deepEqual(collectParameters(["a=1", "b=x=y", "c="]), [
      { name: "a", value: "1" },
      { name: "b", value: "x=y" },
      { name: "c", value: "" },
    ]);
    for (const text of ["a", "=1"])
      assert.equal(
        codeOf(() => collectParameters([text])),
        "ERR_BAD_PARAMETER",
      );
  });

  it("reads server addresses with and without scheme, and drops the last slash", () => {
    assert.equal(parseServerUrl("coder.example.com/"), "https://coder.example.com");
    assert.equal(parseServerUrl("http://127.0.0.1:3000"), "http://127.0.0.1:3000");
    assert.equal(parseServerUrl("https://example.com/coder/"), "https://example.com/coder");
    assert.equal(
      codeOf(() => parseServerUrl("http://")),
      "ERR_BAD_URL",
    );
  });

  it("keeps the login in files that nobody else reads, and forgets the token alone", () => {
    const folder = path.join(dir, "a/b");
    writeLogin(folder, { url: "https://x", token: "secret" });
    assert.deepEqual(readLogin(folder), { url: "https://x", token: "secret" });
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    assert.equal(statSync(path.join(folder, "session")).mode & 0o777, 0o600);
    forgetSession(folder);
    assert.deepEqual(readLogin(folder), { url: "https://x", token: undefined });
  });

  it("finds the config folder by flag, variable, then the platform's habit", () => {
    assert.equal(configDir("/x", { CODER_CONFIG_DIR: "/y" }), "/x");
    assert.equal(configDir(undefined, { CODER_CONFIG_DIR: "/y" }), "/y");
    if (process.platform === "linux")
      assert.equal(configDir(undefined, { XDG_CONFIG_HOME: "/z" }), "/z/coderv2");
  });

  it("a table aligns its columns and lets no control character through to the terminal", () => {
    const text = formatTable(
      [{ name: "a\x1b[31mb", status: "ok" }, { name: "longer-name" }],
      ["name", "status"],
    );
    assert.equal(text, "NAME         STATUS\nab           ok\nlonger-name");
    fc.assert(
      fc.property(fc.string(), (name) => {
        for (const char of formatTable([{ name }], ["name"]).replaceAll("\n", ""))
          assert.ok(char >= " " && char !== "\x7f");
      }),
    );
  });

  it("JSON of what a workspace says holds no control character, and reads as the same", () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.integer({ max: 0xff }).map((n) => String.fromCharCode(n)) }),
        (what) => {
          const text = formatJson({ what });
          assert.doesNotMatch(text.replaceAll("\n", ""), /[\x00-\x1f\x7f-\x9f]/);
          assert.deepEqual(JSON.parse(text), { what });
        },
      ),
    );
  });

  it("takes escape sequences out of what servers, templates and workspaces say", () => {
    assert.equal(
      printable("\x1b[1;31mred\x1b[0m \x1b]0;title\x07plain\x9b2J\x1bcend\tx\ny"),
      "red plain2Jend\tx\ny",
    );
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        assert.doesNotMatch(printable(text), /[\x00-\x08\x0b-\x1f\x7f-\x9f]/);
      }),
    );
  });

  it("signals that come together are one press; a second press is another", () => {
    const presses = new Presses();
    const seen = [0, 3, 200, 700].map((now) => presses.isNew("SIGINT", now));
    assert.deepEqual(seen, [true, false, false, true]);
    assert.deepEqual(
      [701, 702].map((now) => presses.isNew("SIGTERM", now)),
      [true, true],
      "nobody echoes these",
    );
  });

  it("prints ages as people say them", () => {
    assert.deepEqual(
      [0, 45, 185, 7_500, 200_000].map((seconds) => formatAge(0, seconds * 1000)),
      ["0s", "45s", "3m5s", "2h5m", "2d7h"],
    );
    assert.equal(formatAge(10_000, 0), "0s", "a clock that runs ahead is no negative age");
  });

  it("an error is one message with the next step; only a defect shows its stack", () => {
    let text = "";
    const stderr = new Writable({
      write(chunk, _encoding, done) {
        text += String(chunk);
        done();
      },
    });
    assert.equal(
      reportError(new CliError("ERR_X", "It broke.", { hint: "Mend it.", exitCode: 255 }), stderr),
      255,
    );
    assert.equal(text, "error: It broke.\nMend it.\n");
    text = "";
    const body = { message: "Bad.", validations: [{ field: "name", detail: "is taken" }] };
    assert.equal(reportError(new ApiError(409, body, "POST /x"), stderr), 1);
    assert.equal(text, "error: Bad.\n  name: is taken\n");
    text = "";
    const refusal = { message: "Wrong.", detail: "Ask somebody." };
    reportError(new ApiError(401, refusal, "POST /x"), stderr);
    assert.equal(
      text,
      "error: Wrong.\n  Ask somebody.\n",
      "a refusal that says the next step needs no other",
    );

    text = "";
    reportError(new CoordinatorError("ERR_\x1b[2J\x07X" as "ERR_X", "No\x1b[1m way."), stderr);
    assert.equal(text, "error: No way. (ERR_X)\n", "the code of a coordinator may steer a terminal, too");
    text = "";
    const odd = '{"message":5,"detail":"Why.","validations":[null,{"field":"a"},{"field":"b","detail":"c"}]}';
    reportError(new ApiError(400, errorBody(odd), "GET /x"), stderr);
    assert.equal(text, "error: GET /x answered with status 400\n  b: c\n  Why.\n");
    assert.deepEqual(errorBody('{"validations":{}}').validations, []);

    text = "";
    assert.equal(reportError(systemError(path.join(dir, "no/such")), stderr), 1);
    assert.match(text, /^error: ENOENT.*no\/such'\n$/);

    text = "";
    assert.equal(reportError(new TypeError("oops"), stderr), 1);
    assert.match(text, /^internal error: TypeError: oops\n +at /);
  });

  it("chooses the only agent, the named one, and asks when there are several", () => {
    const workspace = (...names: string[]) =>
      ({
        name: "dev",
        latest_build: { resources: [{ agents: names.map((name) => ({ name })) }] },
      }) as unknown as Parameters<typeof chooseAgent>[0];
    assert.equal(chooseAgent(workspace("main"), undefined).name, "main");
    assert.equal(chooseAgent(workspace("a", "b"), "b").name, "b");
    assert.equal(
      codeOf(() => chooseAgent(workspace("a", "b"), undefined)),
      "ERR_AGENT_AMBIGUOUS",
    );
    assert.equal(
      codeOf(() => chooseAgent(workspace("a"), "z")),
      "ERR_AGENT_NOT_FOUND",
    );
    assert.equal(
      codeOf(() => chooseAgent(workspace(), undefined)),
      "ERR_AGENT_NOT_FOUND",
    );
  });

  describe("template archive", () => {
    it("packs the same files to the same bytes, without Terraform's own working files", async () => {
      mkdirSync(path.join(dir, ".terraform"));
      mkdirSync(path.join(dir, "modules/a"), { recursive: true });
      writeFileSync(path.join(dir, ".terraform/secret"), "x");
      writeFileSync(path.join(dir, "terraform.tfstate"), "state");
      writeFileSync(path.join(dir, "main.tf"), "# main");
      writeFileSync(path.join(dir, "empty.tf"), "");
      writeFileSync(path.join(dir, "modules/a/run.sh"), "#!/bin/sh", { mode: 0o755 });
      symlinkSync("/etc/passwd", path.join(dir, "link"));
      const archive = await packDirectory(dir, 1 << 20);
      assert.deepEqual(await entriesOf(archive), {
        "empty.tf": { mode: 0o644, text: "" },
        "main.tf": { mode: 0o644, text: "# main" },
        "modules/a/run.sh": { mode: 0o755, text: "#!/bin/sh" },
      });
      assert.deepEqual(await packDirectory(dir, 1 << 20), archive);
    });

    it("says so when there is nothing to pack, or too much", async () => {
      await assert.rejects(packDirectory(dir, 1000), { code: "ERR_TEMPLATE_DIRECTORY" });
      await assert.rejects(packDirectory(path.join(dir, "missing"), 1000), {
        code: "ERR_TEMPLATE_DIRECTORY",
      });
      writeFileSync(path.join(dir, "main.tf"), "x".repeat(100_000));
      await assert.rejects(packDirectory(dir, 50_000), { code: "ERR_TEMPLATE_TOO_LARGE" });
    });

    it("packs every starter template", async () => {
      const { starterTemplatesDir } = await import("./resources.ts");
      const archive = await packDirectory(path.join(starterTemplatesDir(), "local"), 1 << 20);
      const main = (await entriesOf(archive))["main.tf"].text;
      assert.equal(main, readFileSync(path.join(starterTemplatesDir(), "local/main.tf"), "utf8"));
    });
  });
});
