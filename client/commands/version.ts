import type { Command } from "commander";
import { outputOption, printJson } from "../output.ts";
import { VERSION } from "../version.ts";

export function register(program: Command): void {
  program
    .command("version")
    .description("Show the version of this command")
    .addOption(outputOption("text", "json"))
    .action(({ output }: { output: string }) => {
      const build = {
        version: VERSION,
        node: process.version,
        platform: process.platform,
        arch: process.arch,
      };
      if (output === "json") return printJson(build);
      process.stdout.write(
        `coder ${VERSION} (node ${process.version}, ${process.platform}/${process.arch})\n`,
      );
    });
}
