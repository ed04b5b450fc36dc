// Which `terraform` runs the builds: the one CODER_TERRAFORM_BIN names, else the first on PATH that is new
// enough, else one fetched once into the cache folder (binary-fetch.ts). Call once per process and keep the answer.
import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { TerraformBinaryError } from "./binary-errors.ts";
import { fetchTerraform, type Release, TERRAFORM_RELEASE } from "./binary-fetch.ts";

/**
 * The starter template's `terraform_data` came with 1.4; `check` and `import` blocks, which current registry
 * modules use, with 1.5; reattach, `plan -json`, `show -json` and `graph -type=plan` are older. And 1.5.7 is the
 * last release under the MPL, so it is what many distributions carry. The builds are tested with 1.11.4.
 */
export const MIN_TERRAFORM_VERSION = "1.5.0";
const VERSION_TIMEOUT_MS = 20_000;

export interface LocateOptions {
  /** CODER_TERRAFORM_BIN, CODER_TERRAFORM_MIRROR and PATH are read. */
  env: NodeJS.ProcessEnv;
  /** Where a fetched one is kept; made when needed. */
  cacheDir: string;
  /** False in air-gapped mode. A copy fetched before is used all the same. */
  fetchAllowed: boolean;
  onProgress?: (message: string) => void;
  signal?: AbortSignal;
  /** What to fetch. */
  release?: Release;
  /** Longest silence of a download. */
  idleTimeoutMs?: number;
}

export interface Terraform {
  /** Absolute. */
  path: string;
  /** E.g. "1.11.4". */
  version: string;
}

/**
 * @throws {TerraformBinaryError} ERR_TERRAFORM_MISSING, ERR_TERRAFORM_TOO_OLD, ERR_TERRAFORM_FETCH,
 *   ERR_TERRAFORM_CHECKSUM; each message says what to install or set
 * @throws the signal's reason when aborted
 */
export async function locateTerraform(options: LocateOptions): Promise<Terraform> {
  const { env, signal, release = TERRAFORM_RELEASE } = options;
  const named = env["CODER_TERRAFORM_BIN"];
  if (named) return await namedTerraform(path.resolve(named), env, signal);

  let tooOld: Terraform | undefined;
  for (const folder of (env["PATH"] ?? "").split(path.delimiter)) {
    const candidate = path.resolve(folder || ".", "terraform");
    if (folder === "" || !(await isExecutable(candidate))) continue;
    // One that can't run (another platform's, a broken wrapper) is as good as none.
    const version = await terraformVersion(candidate, env, signal).catch(() => undefined);
    signal?.throwIfAborted();
    if (version === undefined) continue;
    if (isAtLeast(version, MIN_TERRAFORM_VERSION)) return { path: candidate, version };
    tooOld ??= { path: candidate, version };
  }

  const cached = path.join(options.cacheDir, "terraform", release.version, "terraform");
  if (await isExecutable(cached)) {
    const version = await terraformVersion(cached, env, signal).catch(() => undefined);
    signal?.throwIfAborted();
    if (version === release.version) return { path: cached, version };
  }
  if (!options.fetchAllowed) {
    if (tooOld) throw tooOldError(tooOld);
    throw new TerraformBinaryError(
      "ERR_TERRAFORM_MISSING",
      `no terraform on PATH, and downloads are switched off. ${INSTALL}`,
    );
  }
  const fetched = await fetchTerraform({ ...options, release, target: cached, install: INSTALL });
  const version = await terraformVersion(fetched, env, signal);
  return { path: fetched, version };
}

const INSTALL =
  `Install terraform ${MIN_TERRAFORM_VERSION} or newer (https://developer.hashicorp.com/terraform/install) ` +
  "so that it is on the server's PATH, or set CODER_TERRAFORM_BIN to its path.";

function tooOldError({ path: file, version }: Terraform): TerraformBinaryError {
  return new TerraformBinaryError("ERR_TERRAFORM_TOO_OLD", `${file} is terraform ${version}. ${INSTALL}`);
}

/** What the operator named is used or refused; nothing else is tried in its place. */
async function namedTerraform(
  file: string,
  env: NodeJS.ProcessEnv,
  signal?: AbortSignal,
): Promise<Terraform> {
  const fail = (problem: string, cause?: unknown): TerraformBinaryError =>
    new TerraformBinaryError(
      "ERR_TERRAFORM_MISSING",
      `CODER_TERRAFORM_BIN names ${file}, ${problem}. Correct it, or unset it to use terraform from PATH.`,
      { cause },
    );
  const found = await stat(file).catch((cause) => {
    throw fail("which can't be found", cause);
  });
  if (!found.isFile()) throw fail("which isn't a file");
  if (!(await isExecutable(file))) throw fail(`which isn't executable (chmod +x ${file})`);
  const version = await terraformVersion(file, env, signal).catch((cause: Error) => {
    signal?.throwIfAborted();
    throw fail(`which doesn't answer as terraform does (${cause.message.split("\n")[0]})`, cause);
  });
  if (!isAtLeast(version, MIN_TERRAFORM_VERSION)) throw tooOldError({ path: file, version });
  return { path: file, version };
}

async function isExecutable(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK);
    return (await stat(file)).isFile();
  } catch {
    return false;
  }
}

/** Asks the program itself. It gets no TF_* variable, and may not ask the network for a newer one. */
async function terraformVersion(file: string, env: NodeJS.ProcessEnv, signal?: AbortSignal): Promise<string> {
  const kept = Object.entries(env).filter(([name]) => !/^(TF_|CODER_)/.test(name));
  const options = {
    env: { ...Object.fromEntries(kept), CHECKPOINT_DISABLE: "1" },
    cwd: path.parse(file).root, // it reads the folder it is started in
    timeout: VERSION_TIMEOUT_MS,
    maxBuffer: 1 << 20,
    signal,
  };
  for (let attempt = 1; ; attempt++) {
    try {
      const { stdout } = await promisify(execFile)(file, ["version", "-json"], options);
      return parseVersionOutput(stdout);
    } catch (error) {
      // Right after writing it, a child started meanwhile may still hold the file open until its exec.
      if ((error as NodeJS.ErrnoException).code !== "ETXTBSY" || attempt >= 20) throw error;
      await delay(50);
    }
  }
}

/** @throws {Error} when the text isn't terraform's; versions before 0.13 know no JSON */
export function parseVersionOutput(stdout: string): string {
  let version: unknown = /^Terraform v(\S+)/.exec(stdout)?.[1];
  try {
    version = (JSON.parse(stdout) as { terraform_version?: unknown }).terraform_version;
  } catch {
    // not JSON: an old one's text, or not terraform
  }
  if (typeof version !== "string" || !parse(version))
    throw new Error("its answer to `version` isn't terraform's");
  return version;
}

function parse(version: string): { numbers: number[]; prerelease: boolean } | undefined {
  const found = /^([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$/.exec(
    version,
  );
  return found ? { numbers: found.slice(1, 4).map(Number), prerelease: found[4] !== undefined } : undefined;
}

/** A pre-release (1.5.0-rc1) comes before its release. */
export function isAtLeast(version: string, least: string): boolean {
  const [have, want] = [parse(version), parse(least)];
  if (!have || !want) return false;
  for (const [i, number] of have.numbers.entries()) {
    if (number !== want.numbers[i]) return number > want.numbers[i]!;
  }
  return want.prerelease || !have.prerelease;
}
