import fs from "node:fs";
import path from "node:path";
import { describe, type Logger } from "./logging.ts";
import { binDirOf, ownDirectory } from "./scripts.ts";

const quoted = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;

/** argv of this process, when it is the `coder` command itself. */
export function ownCli(argv: readonly string[] = process.argv): readonly string[] | undefined {
  const [program, script] = argv;
  return script !== undefined && /^coder(\.[cm]?js)?$/.test(path.basename(script))
    ? [program, script]
    : undefined;
}

/**
 * Puts `coder` where the PATH of sessions and scripts ends, so that it is found unless the image has its own. It is
 * a two-line script, written whole or not at all. Trouble is logged: a workspace works without.
 */
export function installCli(
  dataDir: string,
  command: readonly string[] | undefined = ownCli(),
  logger: Logger,
): void {
  if (!command || command.length === 0 || process.platform === "win32") return;
  const file = path.join(binDirOf(dataDir), "coder");
  const text = `#!/bin/sh\nexec ${command.map(quoted).join(" ")} "$@"\n`;
  try {
    for (const directory of [dataDir, binDirOf(dataDir)]) ownDirectory(directory);
    if (fs.existsSync(file) && fs.readFileSync(file, "utf8") === text) return;
    const draft = `${file}.${process.pid}`;
    fs.writeFileSync(draft, text, { mode: 0o755 });
    fs.renameSync(draft, file);
  } catch (error) {
    logger.warn({ reason: describe(error) }, "the coder command could not be put on the PATH of sessions");
  }
}
