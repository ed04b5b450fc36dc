// Runs the genuine terraform for tests: CODER_TERRAFORM_BIN, else the one on PATH. Every build gets a copy of a
// template from test/fixtures/terraform and a provider of its own; nothing is left behind.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { agentScriptEnv } from "./context.ts";
import { type ProviderContext, type RunningProvider, startProvider } from "./index.ts";

const TERRAFORM = process.env.CODER_TERRAFORM_BIN || "terraform";
const COMMAND_TIMEOUT_MS = 15_000;
export const FIXTURES = fileURLToPath(new URL("../../../test/fixtures/terraform/", import.meta.url));
export const SCRIPT = ["curl $", "{ACCESS_URL}bin/coder # $", "{AUTH_TYPE}"].join("");
export const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

interface Ran {
  code: number | null;
  output: string;
}
// What terraform prints as JSON is read as such: the tests name the fields they rely on.
export interface Json {
  [name: string]: Json;
}
export const list = (json: Json | undefined) => (json ?? []) as unknown as Json[];
export const text = (json: Json | undefined) => json as unknown as string;

let root = "";
const closing: (() => Promise<void>)[] = [];

export class Build {
  readonly directory: string;
  readonly provider: RunningProvider;
  constructor(directory: string, provider: RunningProvider) {
    this.directory = directory;
    this.provider = provider;
  }

  run(...args: string[]): Promise<Ran> {
    const child = spawn(TERRAFORM, args, {
      cwd: this.directory,
      stdio: ["ignore", "pipe", "pipe"],
      timeout: COMMAND_TIMEOUT_MS,
      env: {
        PATH: process.env.PATH,
        HOME: root,
        TF_CLI_CONFIG_FILE: path.join(root, "terraformrc"),
        TF_IN_AUTOMATION: "1",
        CHECKPOINT_DISABLE: "1",
        TF_REATTACH_PROVIDERS: this.provider.reattach,
      },
    });
    let output = "";
    child.stdout.on("data", (chunk) => (output += chunk));
    child.stderr.on("data", (chunk) => (output += chunk));
    return new Promise((resolve, reject) => {
      child.on("error", (cause) =>
        reject(new Error(`can't run ${TERRAFORM}; install Terraform 1.11`, { cause })),
      );
      child.on("close", (code) => resolve({ code, output }));
    });
  }

  async must(...args: string[]): Promise<string> {
    const { code, output } = await this.run(...args);
    assert.equal(code, 0, `terraform ${args.join(" ")} failed:\n${output}`);
    return output;
  }

  async json(...args: string[]): Promise<Json> {
    return JSON.parse(await this.must(...args));
  }

  /** Plans into `plan`. @returns the actions by address, without those that do nothing; `errors` when it failed */
  async plan(...args: string[]): Promise<Record<string, string>> {
    await this.must("plan", "-input=false", "-no-color", "-out=plan", ...args);
    const shown = await this.json("show", "-json", "plan");
    return Object.fromEntries(
      list(shown.resource_changes)
        .map(({ address, change }) => [text(address), list(change.actions).join(" ")])
        .filter(([, actions]) => actions !== "no-op" && actions !== "read"),
    );
  }

  async apply(): Promise<void> {
    await this.must("apply", "-input=false", "-no-color", "plan");
  }

  /** The values of the state's managed resources and data sources by address, modules included. */
  async state(): Promise<Map<string, Json>> {
    const collect = (module: Json | undefined): [string, Json][] =>
      module === undefined
        ? []
        : [
            ...list(module.resources).map((r): [string, Json] => [text(r.address), r.values]),
            ...list(module.child_modules).flatMap(collect),
          ];
    return new Map(collect((await this.json("show", "-json")).values?.root_module));
  }

  outputs(): Promise<Json> {
    return this.json("output", "-json");
  }

  editState(change: (attributes: { [type: string]: Record<string, unknown> }) => void): void {
    const file = path.join(this.directory, "terraform.tfstate");
    const state = JSON.parse(readFileSync(file, "utf8"));
    change(Object.fromEntries(state.resources.map((r: Json) => [r.type, r.instances[0].attributes])));
    writeFileSync(file, JSON.stringify({ ...state, serial: state.serial + 1 }));
  }
}

export const context = (
  env: Record<string, string> = {},
  more: Partial<ProviderContext> = {},
): ProviderContext => ({
  env: new Map(
    Object.entries({
      CODER_AGENT_URL: "http://127.0.0.1:3000",
      [agentScriptEnv("linux", "amd64")]: SCRIPT,
      ...env,
    }),
  ),
  agentTokens: "keep",
  ...more,
});

/** A build of a copy of the fixture, or a further one in the same directory, as the next transition makes it. */
export async function build(from: string | Build, given: ProviderContext = context()): Promise<Build> {
  let directory: string;
  if (typeof from === "string") {
    directory = mkdtempSync(path.join(root, `${from}-`));
    cpSync(path.join(FIXTURES, from), directory, { recursive: true });
  } else directory = from.directory;
  const provider = await startProvider(given, { socketDir: path.join(root, "sock") });
  closing.push(() => provider.close());
  return new Build(directory, provider);
}

/** Makes the surrounding describe block a place builds can run in. */
export function useBuilds(): void {
  before(() => {
    root = mkdtempSync(path.join(os.tmpdir(), "provider-"));
    mkdirSync(path.join(root, "sock"), { mode: 0o700 });
    writeFileSync(path.join(root, "terraformrc"), "disable_checkpoint = true\n");
  });
  after(async () => {
    for (const close of closing.splice(0)) await close();
    assert.deepEqual(readdirSync(path.join(root, "sock")), [], "sockets are removed");
    rmSync(root, { recursive: true, force: true });
  });
}
