// A `coder server` in a sandbox, people who use it through the command line, and small templates for them.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { bundle, type Finished, type Running, type Sandbox } from "./sandbox.ts";

const SERVING = /^Serving (http:\/\/\S+)\. /m;
export const PASSWORD = "correct-Horse-9-battery";

export interface ServerOptions {
  /** Default: any free one. */
  port?: string;
  args?: string[];
  env?: NodeJS.ProcessEnv;
}

export class TestServer {
  readonly dir: string;
  readonly url: string;
  readonly running: Running;

  constructor(dir: string, url: string, running: Running) {
    this.dir = dir;
    this.url = url;
    this.running = running;
  }

  /** Data lies in the sandbox's folder `srv`, so that a second start finds it. */
  static async start(
    sandbox: Sandbox,
    { port = "0", args = [], env = {} }: ServerOptions = {},
  ): Promise<TestServer> {
    const dir = path.join(sandbox.dir, "srv");
    const all = [bundle, "server", "--http-address", `127.0.0.1:${port}`, "--global-config", dir, ...args];
    const running = sandbox.start(process.execPath, all, env);
    const [, url] = await sandbox.until(running, "stderr", SERVING);
    return new TestServer(dir, url, running);
  }

  /** SIGTERM, then the end. */
  async stop(): Promise<Finished> {
    this.running.child.kill("SIGTERM");
    return await this.running.finished;
  }
}

/** Somebody with a login of their own. */
export class Person {
  readonly name: string;
  readonly configDir: string;
  readonly #sandbox: Sandbox;
  #url: string;

  constructor(sandbox: Sandbox, url: string, name: string) {
    this.#sandbox = sandbox;
    this.#url = url;
    this.name = name;
    this.configDir = path.join(sandbox.dir, `config-${name}`);
  }

  /** Makes the first user of a new server and logs in. */
  static async first(sandbox: Sandbox, url: string, name: string): Promise<Person> {
    const person = new Person(sandbox, url, name);
    const flags = ["--first-user-username", name, "--first-user-email", `${name}@example.com`];
    const env = { CODER_CONFIG_DIR: person.configDir, CODER_FIRST_USER_PASSWORD: PASSWORD };
    const login = await sandbox.run(process.execPath, [bundle, "login", url, ...flags], env);
    assert.equal(login.code, 0, login.stderr);
    return person;
  }

  /** Adds a member and logs them in. */
  async invite(name: string): Promise<Person> {
    const body = { username: name, email: `${name}@example.com`, password: PASSWORD };
    assert.equal((await this.api("POST", "/users", body)).status, 201);
    const person = new Person(this.#sandbox, this.#url, name);
    const login = await person.coder("login", this.#url, "--email", body.email, "--password", PASSWORD);
    assert.equal(login.code, 0, login.stderr);
    return person;
  }

  /** The server came back elsewhere. */
  moveTo(url: string): void {
    this.#url = url;
    writeFileSync(path.join(this.configDir, "url"), url);
  }

  start(...args: string[]): Running {
    return this.#sandbox.start(process.execPath, [bundle, ...args], { CODER_CONFIG_DIR: this.configDir });
  }

  coder(...args: string[]): Promise<Finished> {
    return this.start(...args).finished;
  }

  /** @throws when it fails */
  async must(...args: string[]): Promise<Finished> {
    const done = await this.coder(...args);
    assert.equal(done.code, 0, `coder ${args.join(" ")}\n${done.stderr}`);
    return done;
  }

  /** What a command with `--output json` prints. */
  async json<T = Record<string, unknown>>(...args: string[]): Promise<T> {
    return JSON.parse((await this.must(...args, "--output", "json")).stdout) as T;
  }

  get token(): string {
    return readFileSync(path.join(this.configDir, "session"), "utf8");
  }

  async api(method: string, pathname: string, body?: unknown): Promise<{ status: number; body: string }> {
    const answer = await fetch(`${this.#url}/api/v2${pathname}`, {
      method,
      headers: { "coder-session-token": this.token, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    return { status: answer.status, body: await answer.text() };
  }

  /** Writes a template's files and publishes it. */
  async push(name: string, files: string | Record<string, string>, ...flags: string[]): Promise<Finished> {
    const directory = writeTemplate(this.#sandbox, name, files);
    return await this.coder("templates", "push", name, "--yes", "--directory", directory, ...flags);
  }

  async mustPush(...args: Parameters<Person["push"]>): Promise<void> {
    const pushed = await this.push(...args);
    assert.equal(pushed.code, 0, pushed.stderr);
  }

  async build(workspace: string): Promise<{ id: string; number: number; status: string; error: string }> {
    const { latest_build: build } = await this.json<{
      latest_build: { id: string; build_number: number; status: string; job: { error?: string } };
    }>("show", workspace);
    return { id: build.id, number: build.build_number, status: build.status, error: build.job.error ?? "" };
  }

  /** Addresses of what the Terraform state of the latest build holds. */
  async state(workspace: string): Promise<string[]> {
    const { body } = await this.api("GET", `/workspacebuilds/${(await this.build(workspace)).id}/state`);
    if (body === "") return [];
    const { resources } = JSON.parse(body) as {
      resources: { mode: string; type: string; name: string; instances: unknown[] }[];
    };
    return resources
      .filter(({ mode, instances }) => mode === "managed" && instances.length > 0)
      .map(({ type, name }) => `${type}.${name}`);
  }
}

export function writeTemplate(
  sandbox: Sandbox,
  name: string,
  files: string | Record<string, string>,
): string {
  const directory = path.join(sandbox.dir, "templates", name);
  mkdirSync(directory, { recursive: true });
  for (const [file, text] of Object.entries(typeof files === "string" ? { "main.tf": files } : files))
    writeFileSync(path.join(directory, file), text);
  return directory;
}

/** A refused command: nothing on stdout, on stderr each of `says`, and no stack trace. */
export function assertRefused(done: Finished, code: number, ...says: RegExp[]): void {
  assert.equal(done.code, code, done.stderr);
  assert.equal(done.stdout, "");
  assert.match(done.stderr, /^error: /m);
  assert.doesNotMatch(done.stderr, /internal error|^ +at /m);
  for (const text of says) assert.match(done.stderr, text);
}

const HEAD = `terraform {
  required_providers {
    coder = { source = "coder/coder" }
  }
}
data "coder_workspace" "me" {}
`;

/** Templates without an agent: their builds take no longer than Terraform does. */
export const templates = {
  empty: HEAD,
  /** The missing value is in line 8. */
  broken: `${HEAD}
resource "terraform_data" "x" { input = }
`,
  half: `${HEAD}
resource "terraform_data" "first" {}
resource "terraform_data" "second" {
  depends_on = [terraform_data.first]
  provisioner "local-exec" {
    command = "echo no luck; exit 3"
  }
}
`,
  parameters: `${HEAD}
data "coder_parameter" "size" {
  name    = "size"
  type    = "number"
  default = 5
  validation {
    min = 1
    max = 10
  }
}
data "coder_parameter" "region" {
  name = "region"
  option {
    name  = "Europe"
    value = "eu"
  }
  option {
    name  = "America"
    value = "us"
  }
}
`,
  variables: `${HEAD}
variable "zone" {}
variable "secret" { sensitive = true }
resource "terraform_data" "x" { input = "\${var.zone} \${var.secret}" }
`,
  /** Its start waits until `file` exists. */
  waiting: (file: string): string => `${HEAD}
resource "terraform_data" "kept" {}
resource "terraform_data" "waiting" {
  count      = data.coder_workspace.me.start_count
  depends_on = [terraform_data.kept]
  provisioner "local-exec" {
    command = "echo begun; until [ -e '${file}' ]; do sleep 0.05; done; echo done"
  }
}
`,
};
