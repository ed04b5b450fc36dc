// `coder ssh` alone, for launch.ts: what main.ts does, with one command.
import * as ssh from "./commands/ssh.ts";
import { reportError } from "./errors.ts";
import { newProgram } from "./program.ts";

newProgram([ssh])
  .parseAsync(process.argv.slice(2), { from: "user" })
  .catch((error: unknown) => {
    process.exitCode = reportError(error);
  });
