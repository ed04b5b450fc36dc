// The entry point. It imports nothing but Node's own statically: what it loads is compiled after the cache is on, and
// read all at once.
import { mkdirSync } from "node:fs";
import nodeModule from "node:module";
import { homedir } from "node:os";
import path from "node:path";
import type { CommandModule } from "./program.ts";

/**
 * Which module registers a command. Only the one that is called gets loaded: IDEs start `coder ssh` often, and
 * it must never pay for a server.
 */
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

/** The first word that is no option and no option's value. */
function commandName(args: readonly string[]): string | undefined {
  for (let i = 0; i < args.length; i++) {
    if (["--url", "--token", "--global-config"].includes(args[i])) i++;
    else if (!args[i].startsWith("-")) return args[i];
  }
  return undefined;
}

/** Node 22.1 and newer keep what V8 compiled for the next start: in a folder of the user's own, for it is code. */
function useCompileCache(): void {
  const { enableCompileCache } = nodeModule as { enableCompileCache?: (dir: string) => unknown };
  if (!enableCompileCache || process.env["NODE_DISABLE_COMPILE_CACHE"]) return;
  const { env } = process;
  const base =
    env["XDG_CACHE_HOME"] ??
    (process.platform === "win32" ? env["LOCALAPPDATA"] : undefined) ??
    path.join(homedir(), process.platform === "darwin" ? "Library/Caches" : ".cache");
  const dir = path.join(base, "coder", "compiled");
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    enableCompileCache(dir);
  } catch {
    // a read-only home: compiled each time, as before
  }
}

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

useCompileCache();
main(process.argv.slice(2)).catch(async (error: unknown) => {
  const { reportError } = await import("./errors.ts");
  process.exitCode = reportError(error);
});
