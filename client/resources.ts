import { existsSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const TEMPLATES = "deploy/templates";

/** Folder of the installation: the one with the starter templates, above this file wherever it was bundled to. */
export function installRoot(): string {
  let dir = path.dirname(fileURLToPath(import.meta.url));
  while (!existsSync(path.join(dir, TEMPLATES))) {
    const parent = path.dirname(dir);
    if (parent === dir) throw new Error(`the installation is incomplete: no ${TEMPLATES} above the program`);
    dir = parent;
  }
  return dir;
}

export const starterTemplatesDir = (): string => path.join(installRoot(), TEMPLATES);
