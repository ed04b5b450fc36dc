import assert from "node:assert/strict";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { newClient } from "../../control/db/open.ts";
import { type Finished, Sandbox } from "./sandbox.ts";
import { PASSWORD, Person, TestServer } from "./server.ts";

const SAMPLE_EVERY_MS = 40;
const TEMPLATE_SECRET = "tmpl-Secret-4711";
/** A 32-byte X25519 or Ed25519 key as PKCS #8 starts with these. */
const PKCS8_X25519 = Buffer.from("302e020100300506032b656e04220420", "hex");

/** What everybody on the machine could see while the job ran. */
class Watch {
  readonly commandLines = new Set<string>();
  /** Entries of the temporary folder that others could open, with their modes. */
  readonly openEntries = new Set<string>();
  readonly #timer: NodeJS.Timeout;

  constructor(tmp: string) {
    this.#timer = setInterval(() => this.#sample(tmp), SAMPLE_EVERY_MS);
  }

  #sample(tmp: string): void {
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
      this.commandLines.add(readOrEmpty(`/proc/${pid}/cmdline`).replaceAll("\0", " "));
    for (const name of readdirSync(tmp)) {
      const mode = modeOf(path.join(tmp, name));
      if ((mode & 0o077) !== 0) this.openEntries.add(`${name} ${mode.toString(8)}`);
    }
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

function readOrEmpty(file: string): string {
  try {
    return readFileSync(file, "latin1");
  } catch {
    return ""; // ended, or gone, meanwhile
  }
}

function modeOf(file: string): number {
  try {
    return statSync(file).mode & 0o777;
  } catch {
    return 0; // gone meanwhile
  }
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

/** The ways 32 bytes get written. */
const spellings = (key: Buffer): string[] => [
  key.toString("hex"),
  key.toString("base64").replace(/=+$/, ""),
  key.toString("base64url"),
];

/** 32-byte values that a text holds, in hex or base64. */
function keysIn(text: string): Buffer[] {
  const hex = [...text.matchAll(/\b[0-9a-f]{64}\b/gi)].map(([found]) => Buffer.from(found, "hex"));
  const base64 = [...text.matchAll(/(?<![\w+/-])[\w+/-]{43}(?![\w+/-])/g)].map(([found]) =>
    Buffer.from(found, "base64"),
  );
  return [...hex, ...base64].filter(({ length }) => length === 32);
}

function publicOf(privateKey: Buffer): Buffer {
  const key = createPrivateKey({
    key: Buffer.concat([PKCS8_X25519, privateKey]),
    format: "der",
    type: "pkcs8",
  });
  return Buffer.from(createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32));
}

describe("secrets of the main job", function () {
  this.timeout(120_000);
  let sandbox: Sandbox;
  let server: TestServer;
  let alice: Person;
  let watch: Watch;
  let workspaces: string;
  const secrets = new Map<string, string>();
  const texts = new Map<string, string>();
  /** What `coder ssh dev env` printed. */
  let sessionEnvironment = "";

  before(async () => {
    sandbox = new Sandbox();
    workspaces = path.join(sandbox.dir, "workspaces");
    watch = new Watch(sandbox.tmp);
    server = await TestServer.start(sandbox, { args: ["--log-level", "debug"] });
    alice = await Person.first(sandbox, server.url, "alice");
    const commands: Finished[] = [];
    const run = async (...args: string[]) => {
      const done = await alice.must(...args);
      commands.push(done);
      return done;
    };
    const files: Record<string, string> = {};
    const starter = path.join(sandbox.dir, "starter");
    await run("templates", "init", starter, "--id", "local");
    for (const name of readdirSync(starter)) files[name] = readFileSync(path.join(starter, name), "utf8");
    const quiet = files["agent.sh"];
    files["agent.sh"] = quiet.replace(
      "export CODER_AGENT_TOKEN",
      "export CODER_AGENT_LOG_LEVEL=debug CODER_AGENT_TOKEN",
    );
    assert.notEqual(files["agent.sh"], quiet, "the agent logs all it can");
    files["main.tf"] += `
variable "secret" { sensitive = true }
resource "terraform_data" "secret" {
  input = var.secret
  provisioner "local-exec" { command = "echo \${nonsensitive(sha256(var.secret))} >/dev/null" }
}
`;
    const values = ["--variable", `path=${workspaces}`, "--variable", `secret=${TEMPLATE_SECRET}`];
    commands.push(await alice.push("local", files, ...values));
    await run("create", "dev", "--template", "local", "--yes");
    sessionEnvironment = (await run("ssh", "dev", "env")).stdout;
    await run("ping", "dev", "--num", "1");
    await run("show", "dev");
    const shown = await run("show", "dev", "--output", "json");
    texts.set("show --output json", shown.stdout);
    await collectSecrets();
    await collectBuildLogs();
    texts.set(
      "agent log",
      filesBelow(workspaces)
        .filter((file) => file.endsWith("agent.log"))
        .map(readOrEmpty)
        .join("\n"),
    );
    await run("stop", "dev", "--yes");
    await run("start", "dev");
    await collectBuildLogs();
    const refused = await alice.coder(
      "login",
      server.url,
      "--email",
      "alice@example.com",
      "--password",
      "wrong-Horse-9",
    );
    commands.push(refused);
    secrets.set("a mistyped password", "wrong-Horse-9");
    await run("delete", "dev", "--yes");
    const { token } = alice;
    secrets.set("the session token's secret", token.split("-")[1]);
    const sessionFile = path.join(alice.configDir, "session");
    assert.equal(modeOf(sessionFile), 0o600);
    await run("logout", "--yes");
    texts.set("stderr of the commands", commands.map(({ stderr }) => stderr).join("\n"));
    await server.stop();
    texts.set("server log", server.running.stderr + server.running.stdout);
    watch.stop();
  });
  after(async () => {
    watch?.stop();
    await server?.stop();
    const left = sandbox.processes();
    sandbox.dispose();
    assert.deepEqual(left, [], "processes left behind");
  });

  async function collectSecrets(): Promise<void> {
    const password = readFileSync(path.join(server.dir, "postgres/password"), "utf8").trim();
    const socketDir = readdirSync(sandbox.tmp).find((name) => name.startsWith("coder-pg-"));
    assert.ok(socketDir, "the embedded server's socket");
    const host = encodeURIComponent(path.join(sandbox.tmp, socketDir));
    const client = newClient(`postgres://coder:${password}@/coder?host=${host}`);
    await client.connect();
    const { rows } = await client.query<{ private_key: Buffer }>("select private_key from signing_keys");
    await client.end();
    assert.equal(rows.length, 1);
    for (const [i, text] of spellings(rows[0].private_key).entries()) secrets.set(`signing key ${i}`, text);
    secrets.set("the database's password", password);
    secrets.set("the user's password", PASSWORD);
    secrets.set("the template's sensitive variable", TEMPLATE_SECRET);
    const tokens = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map((pid) => readOrEmpty(`/proc/${pid}/environ`))
      .filter((text) => text.includes(sandbox.dir))
      .flatMap((text) => /(?:^|\0)CODER_AGENT_TOKEN=([^\0]+)/.exec(text)?.[1] ?? []);
    assert.equal(new Set(tokens).size, 1, "the running agent's token");
    secrets.set("the agent's token", tokens[0]);
    for (const [name, text] of secrets) assert.ok(text.length >= 8, name);
  }

  async function collectBuildLogs(): Promise<void> {
    const { id } = await alice.build("dev");
    const { body } = await alice.api("GET", `/workspacebuilds/${id}/logs`);
    texts.set("build logs", (texts.get("build logs") ?? "") + body);
  }

  it("none of them is in the server's log, the agent's, a build's, or on a command's stderr", () => {
    for (const [name, text] of texts) {
      assert.ok(text.length > 200, `${name} holds something to look at`);
      for (const [what, secret] of secrets) assert.ok(!text.includes(secret), `${what} is in: ${name}`);
    }
    assert.match(texts.get("server log") ?? "", /"level":20|"level":"debug"|granted a session/);
  });

  it("no private key of a node is in a log: none whose public key is known", () => {
    const all = keysIn([...texts.values()].join("\n"));
    const known = new Set(all.map((key) => key.toString("hex")));
    for (const key of all)
      assert.ok(!known.has(publicOf(key).toString("hex")), "a key and its public half are both logged");
  });

  it("none of them is in a process's arguments, for other users to list", () => {
    const lines = [...watch.commandLines].filter((line) => !/ (login|templates push) /.test(line));
    assert.ok(
      lines.some((line) => /terraform .*apply/.test(line)),
      "Terraform was seen running",
    );
    assert.ok(
      lines.some((line) => /coder\.js'? agent/.test(line)),
      "the agent was seen running",
    );
    for (const line of lines)
      for (const [what, secret] of secrets) assert.ok(!line.includes(secret), `${what} is in: ${line}`);
  });

  it("the agent's token and the server's secrets don't reach a session", () => {
    assert.match(sessionEnvironment, /^HOME=/m);
    for (const [what, secret] of secrets)
      assert.ok(!sessionEnvironment.includes(secret), `${what} is in the session's environment`);
  });

  it("files that hold one are 0600, and so are their folders closed", () => {
    const holding: string[] = [];
    for (const folder of [server.dir, alice.configDir]) {
      assert.equal(modeOf(folder), 0o700, folder);
      for (const file of filesBelow(folder)) {
        const text = readOrEmpty(file);
        const found = [...secrets].find(([, secret]) => text.includes(secret));
        if (!found) continue;
        holding.push(path.basename(file));
        assert.equal(modeOf(file) & 0o077, 0, `${file} holds ${found[0]}`);
      }
    }
    assert.ok(holding.includes("password"), "the search finds what is there");
    assert.deepEqual([...watch.openEntries], [], "temporary files are closed to others");
  });
});
