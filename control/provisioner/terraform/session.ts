// One job's Terraform: an unpacked template, an attached provider, and the commands run with them.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import path from "node:path";
import { Limiter } from "../limiter.ts";
import type { LogLevel, LogSource, TemplateVariable, TemplateVariableValue } from "../protocol.ts";
import { chooseCliConfig, terraformEnvironment } from "./environment.ts";
import { MissingVariablesError, TerraformError } from "./errors.ts";
import { DependencyGraph } from "./graph.ts";
import { type Diagnostic, missingVariables, parseMessage, summarize } from "./messages.ts";
import type { ShownPlan, ShownState } from "./plan-json.ts";
import { runTerraform, type TerraformExit } from "./run.ts";
import { needsInit, type TemplateFile, variableFiles } from "./variables.ts";
import type { WorkDir } from "./workdir.ts";

export interface TerraformBinary {
  path: string;
  version: string;
}

export type Log = (stage: string, output: string, level?: LogLevel, source?: LogSource) => void;

export interface SessionOptions {
  terraform: TerraformBinary;
  workDir: WorkDir;
  /** The daemon's own environment, to be filtered. */
  env: NodeJS.ProcessEnv;
  extraEnvironment?: readonly string[];
  /** Providers downloaded once are kept here. Only one server may use a folder. */
  cacheDir?: string;
  /** A filesystem mirror of providers, for installations without a network. */
  mirrorDir?: string;
  log: Log;
  redact: (text: string) => string;
  signal: AbortSignal;
  interruptGraceMs?: number;
}

/**
 * Commands that mostly compute share the cores, or many builds at once slow each other down. An apply mostly
 * waits for others and isn't counted.
 */
const commandSlots = new Limiter(Math.max(2, availableParallelism()));
/** Terraform's plugin cache is not safe for two `init` at once. */
const initSlot = new Limiter(1);

export class TerraformSession {
  #options: SessionOptions;
  #cliConfig: { path: string; own: boolean };
  #variableArgs: string[];

  private constructor(
    options: SessionOptions,
    cliConfig: { path: string; own: boolean },
    variableArgs: string[],
  ) {
    this.#options = options;
    this.#cliConfig = cliConfig;
    this.#variableArgs = variableArgs;
  }

  /** @throws {TerraformError} ERR_TERRAFORM_CLI_CONFIG */
  static async open(
    options: SessionOptions,
    values: TemplateVariableValue[],
    declared: TemplateVariable[],
  ): Promise<TerraformSession> {
    const { root } = options.workDir;
    const cliConfig = await chooseCliConfig(options.env, path.join(root, "terraform.rc"), options.mirrorDir);
    const { json, hcl } = variableFiles(values, declared);
    const variableArgs: string[] = [];
    for (const [name, text, empty] of [
      ["variables.tfvars.json", json, "{}"],
      ["variables.tfvars", hcl, ""],
    ] as const) {
      if (text === empty) continue;
      await writeFile(path.join(root, name), text, { mode: 0o600 });
      variableArgs.push(`-var-file=${path.join(root, name)}`);
    }
    return new TerraformSession(options, cliConfig, variableArgs);
  }

  /** Fetches modules and other providers, not the attached one; does nothing for a template that has neither. */
  async init(files: TemplateFile[], reattach: string): Promise<void> {
    if (!needsInit(files)) return;
    const { cacheDir, terraform } = this.#options;
    const env: Record<string, string> = { TF_REATTACH_PROVIDERS: reattach };
    if (cacheDir && this.#cliConfig.own) {
      env["TF_PLUGIN_CACHE_DIR"] = path.join(cacheDir, "providers");
      // Without this the cache serves only templates that bring a lock file.
      env["TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE"] = "1";
      await mkdir(env["TF_PLUGIN_CACHE_DIR"], { recursive: true, mode: 0o700 });
    }
    const format = atLeast(terraform.version, 1, 9) ? "-json" : "-no-color";
    const run = () => this.#stream("Initializing Terraform", ["init", format, "-input=false"], env);
    await (env["TF_PLUGIN_CACHE_DIR"] ? initSlot.run(run) : run());
  }

  /**
   * @param reattach the attached provider (TF_REATTACH_PROVIDERS)
   * @throws {MissingVariablesError} when that is why it fails
   */
  async plan(
    stage: string,
    planFile: string,
    reattach: string,
    options?: { destroy?: boolean },
  ): Promise<void> {
    const args = ["plan", "-json", "-input=false", `-out=${planFile}`, ...this.#variableArgs];
    if (options?.destroy) args.push("-destroy");
    await commandSlots.run(() => this.#stream(stage, args, { TF_REATTACH_PROVIDERS: reattach }));
  }

  /** Changes the world. Its state file is worth reading even when this throws. */
  async apply(stage: string, planFile: string, reattach: string): Promise<void> {
    const args = ["apply", "-json", "-input=false", "-auto-approve", planFile];
    await this.#stream(stage, args, { TF_REATTACH_PROVIDERS: reattach });
  }

  async showPlan(planFile: string, reattach: string): Promise<ShownPlan> {
    return JSON.parse(await this.#capture(["show", "-json", planFile], reattach)) as ShownPlan;
  }

  async showState(reattach: string): Promise<ShownState> {
    return JSON.parse(await this.#capture(["show", "-json"], reattach)) as ShownState;
  }

  async graph(reattach: string): Promise<DependencyGraph> {
    return DependencyGraph.parse(await this.#capture(["graph", "-type=plan"], reattach));
  }

  /** @returns the state file as terraform left it, undefined when there is none */
  async readState(): Promise<Uint8Array | undefined> {
    const bytes = await readFile(this.#options.workDir.statePath).catch(() => undefined);
    return bytes && bytes.length > 0 ? new Uint8Array(bytes) : undefined;
  }

  /** Runs a command whose output is the job's log. */
  async #stream(stage: string, args: string[], env: Record<string, string>): Promise<void> {
    const { log, redact } = this.#options;
    const errors: Diagnostic[] = [];
    const exit = await this.#run(args, env, (line, stream) => {
      const message = parseMessage(line);
      if (!message) return;
      if (message.diagnostic?.severity === "error") errors.push(message.diagnostic);
      const isRepeated = args[0] === "apply" && message.isPlannedChange;
      const isBare = stream === "stderr" && !line.startsWith("{");
      const level = isBare ? "error" : isRepeated ? "debug" : message.level;
      for (const text of message.lines) log(stage, redact(text), level, "provisioner");
    });
    this.#check(args[0]!, exit, errors);
  }

  async #capture(args: string[], reattach: string): Promise<string> {
    const exit = await commandSlots.run(() => this.#run(args, { TF_REATTACH_PROVIDERS: reattach }));
    this.#check(args[0]!, exit, []);
    return exit.stdout;
  }

  #run(
    args: string[],
    env: Record<string, string>,
    onLine?: (line: string, stream: "stdout" | "stderr") => void,
  ): Promise<TerraformExit> {
    const { terraform, workDir, signal, interruptGraceMs } = this.#options;
    return runTerraform({
      binary: terraform.path,
      args,
      cwd: workDir.templateDir,
      env: terraformEnvironment(
        this.#options.env,
        { TF_CLI_CONFIG_FILE: this.#cliConfig.path, TF_DATA_DIR: workDir.dataDir, ...env },
        this.#options.extraEnvironment,
      ),
      signal,
      ...(onLine && { onLine }),
      ...(interruptGraceMs !== undefined && { interruptGraceMs }),
    });
  }

  #check(name: string, exit: TerraformExit, errors: Diagnostic[]): void {
    if (exit.canceled) throw new TerraformError("ERR_JOB_CANCELED", "the job was canceled");
    if (exit.exitCode === 0) return;
    const missing = missingVariables(errors);
    if (missing.length > 0) throw new MissingVariablesError(missing, []);
    if (exit.killedBy)
      throw new TerraformError("ERR_TERRAFORM_CRASHED", `terraform ${name} was ended by ${exit.killedBy}`);
    const why = summarize(errors) || exit.stderrTail || `exit code ${exit.exitCode}`;
    throw new TerraformError("ERR_TERRAFORM_FAILED", this.#options.redact(`terraform ${name}: ${why}`));
  }
}

function atLeast(version: string, major: number, minor: number): boolean {
  const [a = 0, b = 0] = version.split(".").map((part) => Number.parseInt(part, 10));
  return a > major || (a === major && b >= minor);
}
