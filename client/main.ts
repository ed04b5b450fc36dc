// All commands, as ES modules. launch.ts comes before it.
import type { CommandModule } from "./program.ts";
import { commandName } from "./words.ts";

/** Which module registers a command. Only the one that is called gets loaded: it must never pay for a server. */
const MODULES: Record<string, () => Promise<CommandModule>> = {
  login: () => import("./commands/login.ts"),
  logout: () => import("./commands/login.ts"),
  whoami: () => import("./commands/login.ts"),
  templates: () => import("./commands/templates.ts"),
  template: () => import("./commands/templates.ts"),
  create: () => import("./commands/workspaces.ts"),
  list: () => import("./commands/workspaces.ts"),
  ls: () => import("./commands/workspaces.ts"),
  show: () => import("./commands/workspaces.ts"),
  start: () => import("./commands/builds.ts"),
  stop: () => import("./commands/builds.ts"),
  delete: () => import("./commands/builds.ts"),
  rm: () => import("./commands/builds.ts"),
  ssh: () => import("./commands/ssh.ts"),
  "config-ssh": () => import("./commands/config-ssh.ts"),
  "port-forward": () => import("./commands/port-forward.ts"),
  tunnel: () => import("./commands/port-forward.ts"),
  sessions: () => import("./commands/sessions.ts"),
  ping: () => import("./commands/ping.ts"),
  speedtest: () => import("./commands/speedtest.ts"),
  version: () => import("./commands/version.ts"),
  server: () => import("./commands/server.ts"),
  agent: () => import("./commands/agent.ts"),
  quickstart: () => import("./commands/quickstart.ts"),
};

async function main(args: string[]): Promise<void> {
  const name = commandName(args);
  const module = name === undefined ? undefined : MODULES[name];
  const loaders = module ? [module] : [...new Map(Object.entries(MODULES)).values()];
  const [{ newProgram }, ...modules] = await Promise.all([
    import("./program.ts"),
    ...loaders.map((load) => load()),
  ]);
  await newProgram(new Set(modules)).parseAsync(args, { from: "user" });
}

main(process.argv.slice(2)).catch(async (error: unknown) => {
  const { reportError } = await import("./errors.ts");
  process.exitCode = reportError(error);
});
