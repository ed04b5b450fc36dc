// In a container without an init the agent is process 1, and the kernel hands it every orphan of the workspace.
// Somebody has to wait for them, or each that ends stays in the process table until no process can be started any
// more. Node waits for its own children only and has no way to wait for others; a POSIX shell, blocked in `wait`,
// reaps whatever it has. So process 1 is left to a shell, and the agent becomes its child.

/** Runs "$@", passes on what asks it to stop, reaps orphans meanwhile, and ends as it ended. For dash, bash, busybox. */
export const REAPER_SCRIPT = [
  "agent= asked=",
  'pass() { if [ -n "$agent" ]; then kill -$1 $agent; else asked=$1; fi; }',
  "trap 'pass TERM' TERM",
  "trap 'pass INT' INT",
  "trap 'pass HUP' HUP",
  '"$@" & agent=$!',
  // Asked while it was being started.
  'if [ -n "$asked" ]; then kill -$asked $agent; fi',
  // A trap interrupts `wait`; only when the agent is gone the status is its own.
  "while wait $agent; status=$?; kill -0 $agent 2>/dev/null; do :; done",
  "exit $status",
].join("\n");

type Execve = (file: string, args: readonly string[], env: NodeJS.ProcessEnv) => never;

/** argv of a process that runs `command` and reaps. */
export const reaperCommand = (command: readonly string[]): readonly string[] => [
  "/bin/sh",
  "-c",
  REAPER_SCRIPT,
  "coder-init",
  ...command,
];

/**
 * To be called first thing in `coder agent`. As process 1 this process becomes the shell above, and starts itself
 * anew below it: then the call doesn't return. It returns when there is nothing to do.
 *
 * @returns a sentence for the log when nobody will reap: Node can't replace its process before version 22.15
 */
export function leaveProcessOneToReaper(): string | undefined {
  if (process.pid !== 1 || process.platform === "win32") return undefined;
  const { execve } = process as unknown as { execve?: Execve };
  if (!execve)
    return "the agent is process 1 and can't reap orphans; run the container with an init (docker run --init)";
  const command = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const [file, ...args] = reaperCommand(command);
  return execve.call(process, file, [file, ...args], process.env);
}
