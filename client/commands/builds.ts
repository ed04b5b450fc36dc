import type { Command } from "commander";
import type { Workspace, WorkspaceBuild } from "../../control/contract/index.ts";
import { apiOf } from "../context.ts";
import { confirm, say } from "../output.ts";
import { collectParameters, findWorkspace, runBuild } from "../workspace.ts";

interface BuildOptions {
  yes?: boolean;
  parameter: string[];
  orphan?: boolean;
}

export function register(program: Command): void {
  const collect = (value: string, all: string[]) => [...all, value];
  const build = (
    name: string,
    description: string,
    action: (workspace: string, options: BuildOptions, c: Command) => Promise<void>,
  ) =>
    program
      .command(name)
      .argument("<workspace>", "name, or owner/name")
      .description(description)
      .option("-y, --yes", "don't ask", false)
      .option("--parameter <name=value>", "value of a template parameter (repeatable)", collect, [])
      .action(action);

  build("start", "Start a workspace", (name, options, command) => change(name, "start", options, command));
  build(
    "stop",
    "Stop a workspace: what is not persistent goes, the rest stays",
    async (name, options, command) => {
      await confirm(`Stop workspace ${name}?`, options.yes);
      await change(name, "stop", options, command);
    },
  );
  build(
    "delete",
    "Delete a workspace and everything Terraform made for it",
    async (name, options, command) => {
      await confirm(`Delete workspace ${name}? This cannot be undone.`, options.yes);
      await change(name, "delete", options, command);
    },
  )
    .alias("rm")
    .option("--orphan", "forget it without destroying what Terraform made (template admins)", false);
}

async function change(
  name: string,
  transition: WorkspaceBuild["transition"],
  options: BuildOptions,
  command: Command,
): Promise<void> {
  const api = apiOf(command);
  try {
    const workspace: Workspace = await findWorkspace(api, name);
    const { status, id } = workspace.latest_build;
    if (transition === "start" && status === "running") return say(`Workspace ${name} is already running.`);
    if (transition === "stop" && status === "stopped") return say(`Workspace ${name} is already stopped.`);
    const underWay = { start: "starting", stop: "stopping", delete: "deleting" }[transition] === status;
    if (underWay)
      say(`Workspace ${name} is already ${status}; following build ${workspace.latest_build.build_number}.`);
    const { build_number } = await runBuild(
      api,
      workspace,
      underWay
        ? { follow: id, transition }
        : {
            transition,
            parameters: collectParameters(options.parameter),
            orphan: options.orphan,
            reason: "cli",
          },
    );
    const done = { start: "started", stop: "stopped", delete: "deleted" }[transition];
    say(`Workspace ${name} ${done} (build ${build_number}).`);
  } finally {
    api.close();
  }
}
