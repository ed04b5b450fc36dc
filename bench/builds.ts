// npm run bench -- builds: a workspace built through the queue, from the request until its log says the end, beside the same files
// given to `terraform` by hand (init, apply; for the delete, destroy), in turns.
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { WebSocket } from "ws";
import { Farm } from "./farm.ts";
import { type Row, report, rounds, row } from "./report.ts";

const ROUNDS = rounds(20, 3);
const TEMPLATE = `resource "terraform_data" "first" {
  input = "one"
}
resource "terraform_data" "second" {
  input = terraform_data.first.output
}
`;
const run = promisify(execFile);

const farm = await Farm.start({ copies: 0 });

async function asked<T>(method: string, pathname: string, body?: unknown): Promise<T> {
  const { status, body: text } = await farm.owner.api(method, pathname, body);
  if (status >= 300) throw new Error(`${method} ${pathname}: ${status} ${text}`);
  return JSON.parse(text) as T;
}

/** Waits for the end of a build's log, as the command line does. @throws unless it succeeded */
async function ended(buildId: string): Promise<void> {
  const url = `${farm.server.url.replace("http", "ws")}/api/v2/workspacebuilds/${buildId}/logs?follow`;
  const log = new WebSocket(url, { headers: { "coder-session-token": farm.owner.token } });
  log.on("message", () => undefined);
  await once(log, "close");
  const build = await asked<{ job: { status: string; error?: string } }>(
    "GET",
    `/workspacebuilds/${buildId}`,
  );
  if (build.job.status !== "succeeded")
    throw new Error(`the build ended ${build.job.status}: ${build.job.error}`);
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
}

async function byHand(folder: string, ...commands: string[][]): Promise<void> {
  for (const args of commands)
    await run("terraform", args, { cwd: folder, env: { ...farm.sandbox.env, CHECKPOINT_DISABLE: "1" } });
}

try {
  await farm.owner.mustPush("plain", TEMPLATE);
  const templates = await asked<{ id: string; name: string }[]>("GET", "/templates");
  const templateId = templates.find(({ name }) => name === "plain")?.id;
  const times = { start: [], startByHand: [], remove: [], removeByHand: [] } as Record<string, number[]>;
  for (let round = -1; round < ROUNDS; round++) {
    let workspace = { id: "", latest_build: { id: "" } };
    const start = await timed(async () => {
      workspace = await asked("POST", "/users/me/workspaces", {
        template_id: templateId,
        name: `bench-${round + 1}`,
      });
      await ended(workspace.latest_build.id);
    });
    const folder = path.join(farm.sandbox.dir, `by-hand-${round + 1}`);
    const startByHand = await timed(async () => {
      mkdirSync(folder);
      writeFileSync(path.join(folder, "main.tf"), TEMPLATE);
      await byHand(folder, ["init", "-input=false"], ["apply", "-input=false", "-auto-approve"]);
    });
    const remove = await timed(async () => {
      const build = await asked<{ id: string }>("POST", `/workspaces/${workspace.id}/builds`, {
        transition: "delete",
      });
      await ended(build.id);
    });
    const removeByHand = await timed(() => byHand(folder, ["destroy", "-auto-approve"]));
    rmSync(folder, { recursive: true });
    if (round < 0) continue; // warm-up
    for (const [name, ms] of Object.entries({ start, startByHand, remove, removeByHand }))
      times[name].push(ms);
  }
  const compare = (id: string, what: string, ours: number[], control: number[]): Row[] => [
    row({ id, what, unit: "ms", ours, control: { name: "terraform by hand", values: control } }),
    row({
      id: `${id}-overhead`,
      what: `${what}: ours beyond Terraform by hand`,
      unit: "ms",
      ours: ours.map((ms, i) => ms - control[i]),
    }),
  ];
  report({
    group: "builds",
    title: "a template of two resources, from the request to the end of the log",
    rows: [
      ...compare("start", "create a workspace", times.start, times.startByHand),
      ...compare("delete", "delete it", times.remove, times.removeByHand),
    ],
  });
} finally {
  await farm.close();
}
