// For tests: a JobQueue in memory, and templates as tars.
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { type Header, pack } from "tar-stream";
import type { BuildJob, ImportJob, Job, JobFailure, JobLog, JobQueue, JobResult } from "./protocol.ts";

/** Files by name -> the tar a user would upload. */
export function templateTar(files: Record<string, string>): Promise<Uint8Array> {
  return tarOf(Object.entries(files).map(([name, content]) => ({ header: { name }, content })));
}

export async function tarOf(
  entries: { header: Partial<Header> & { name: string }; content?: string }[],
): Promise<Uint8Array> {
  const writer = pack();
  for (const { header, content } of entries) writer.entry(header as Header, content ?? "");
  writer.finalize();
  const chunks: Uint8Array[] = [];
  for await (const chunk of writer) chunks.push(chunk as Uint8Array);
  return new Uint8Array(Buffer.concat(chunks));
}

/** A folder's files, one level deep. */
export async function folderTar(dir: string): Promise<Uint8Array> {
  const names = (await readdir(dir)).sort();
  return templateTar(
    Object.fromEntries(
      await Promise.all(
        names.map(async (name) => [name, await readFile(path.join(dir, name), "utf8")] as const),
      ),
    ),
  );
}

const OWNER = {
  coderUrl: "http://127.0.0.1:3000",
  ownerId: "00000000-0000-4000-8000-000000000001",
  ownerName: "alice",
  ownerFullName: "Alice",
  ownerEmail: "alice@example.com",
  ownerLoginType: "password",
};

export function importJob(templateArchive: Uint8Array, more: Partial<ImportJob> = {}): ImportJob {
  return {
    id: "import",
    type: "template_version_import",
    templateArchive,
    variables: [],
    metadata: OWNER,
    ...more,
  };
}

export function buildJob(
  templateArchive: Uint8Array,
  transition: BuildJob["metadata"]["transition"],
  more: Partial<Omit<BuildJob, "type" | "metadata">> = {},
): BuildJob {
  return {
    id: `build-${transition}`,
    type: "workspace_build",
    templateArchive,
    variables: [],
    parameters: [],
    previousParameters: [],
    metadata: {
      ...OWNER,
      transition,
      workspaceId: "00000000-0000-4000-8000-000000000002",
      workspaceName: "dev",
      workspaceBuildId: "00000000-0000-4000-8000-000000000003",
      ownerGroups: [],
      ownerRbacRoles: [],
      ownerSessionToken: "session-token-of-alice",
      ownerSshPublicKey: "",
      ownerSshPrivateKey: "",
      templateId: "00000000-0000-4000-8000-000000000004",
      templateName: "template",
      templateVersion: "v1",
    },
    ...more,
  };
}

/** Hands out the jobs it is given and remembers what it is told. */
export class MemoryQueue implements JobQueue {
  readonly logs: JobLog[] = [];
  readonly canceled = new Set<string>();
  readonly completed = new Map<string, JobResult>();
  readonly failed = new Map<string, JobFailure>();
  /** Thrown by the next call of a method, once each. */
  readonly errors: Partial<Record<keyof JobQueue, Error[]>> = {};
  heartbeats = 0;
  #jobs: Job[] = [];
  #takers: ((job: Job | undefined) => void)[] = [];
  #watchers: { wanted: () => boolean; found: () => void }[] = [];

  add(job: Job): void {
    const taker = this.#takers.shift();
    if (taker) taker(job);
    else this.#jobs.push(job);
  }

  /** Resolves once something holds; looked at after every call of a daemon. */
  until(wanted: () => boolean): Promise<void> {
    if (wanted()) return Promise.resolve();
    return new Promise((found) => this.#watchers.push({ wanted, found }));
  }

  settled(jobId: string): Promise<void> {
    return this.until(() => this.completed.has(jobId) || this.failed.has(jobId));
  }

  async acquire(_daemon: object, signal: AbortSignal): Promise<Job | undefined> {
    this.#throwIfAsked("acquire");
    const job = this.#jobs.shift();
    if (job || signal.aborted) return job;
    return new Promise((resolve) => {
      const take = (taken: Job | undefined) => resolve(taken);
      this.#takers.push(take);
      signal.addEventListener("abort", () => {
        this.#takers = this.#takers.filter((other) => other !== take);
        resolve(undefined);
      });
    });
  }

  async log(_jobId: string, lines: JobLog[]): Promise<void> {
    this.#throwIfAsked("log");
    this.logs.push(...lines);
    this.#look();
  }

  async heartbeat(jobId: string): Promise<{ canceled: boolean }> {
    this.heartbeats++;
    this.#look();
    this.#throwIfAsked("heartbeat");
    return { canceled: this.canceled.has(jobId) };
  }

  async complete(jobId: string, result: JobResult): Promise<void> {
    this.#throwIfAsked("complete");
    this.completed.set(jobId, result);
    this.#look();
  }

  async fail(jobId: string, failure: JobFailure): Promise<void> {
    this.#throwIfAsked("fail");
    this.failed.set(jobId, failure);
    this.#look();
  }

  get text(): string {
    return this.logs.map(({ output }) => output).join("\n");
  }

  #throwIfAsked(method: keyof JobQueue): void {
    const error = this.errors[method]?.shift();
    if (error) throw error;
  }

  #look(): void {
    const [found, rest] = [
      this.#watchers.filter((w) => w.wanted()),
      this.#watchers.filter((w) => !w.wanted()),
    ];
    this.#watchers = rest;
    for (const watcher of found) watcher.found();
  }
}

/** Waits (at most 5 s) until a process is gone; one that only waits to be collected counts as gone. */
export async function waitUntilGone(pid: number): Promise<boolean> {
  for (const giveUpAt = Date.now() + 5_000; Date.now() < giveUpAt; ) {
    if (!(await isRunning(pid))) return true;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return false;
}

export async function isRunning(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat === undefined ? process.platform !== "linux" : !/\) Z /.test(stat);
}

/** The genuine terraform of this machine: CODER_TERRAFORM_BIN, or the first one in PATH. */
export async function findTerraform(): Promise<{ path: string; version: string }> {
  const candidates = [
    process.env["CODER_TERRAFORM_BIN"],
    ...(process.env["PATH"] ?? "").split(path.delimiter).map((dir) => path.join(dir, "terraform")),
  ];
  for (const candidate of candidates) {
    if (!candidate) continue;
    // It would ask the network for a newer one, and leave a file in the home folder.
    const env = { ...process.env, CHECKPOINT_DISABLE: "1" };
    const output = await promisify(execFile)(candidate, ["version", "-json"], { env }).catch(() => undefined);
    if (output) return { path: candidate, version: JSON.parse(output.stdout).terraform_version as string };
  }
  throw new Error("these tests need the genuine terraform: put it in PATH or set CODER_TERRAFORM_BIN");
}
