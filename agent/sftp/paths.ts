// Paths are bytes. Strings here are latin1, one character a byte.
import { errnoOf, PathError } from "./errors.ts";

/** PATH_MAX of Linux with its NUL. */
export const MAX_PATH_BYTES = 4_096;
/** As OpenSSH counts. */
const MAX_SYMLINKS = 32;
/** Components looked at for one path, those of symbolic links included. */
const MAX_STEPS = 4_096;

const SLASH = 0x2f;

/**
 * What the kernel would make of a relative path in `directory`, left as it is otherwise: `..` may follow a
 * symbolic link.
 *
 * @throws {PathError} ENOENT for an empty path, ENAMETOOLONG
 */
export function absolutePath(directory: Buffer, path: Buffer): Buffer {
  if (path.length === 0) throw new PathError("ENOENT");
  if (path.length >= MAX_PATH_BYTES) throw new PathError("ENAMETOOLONG");
  return path[0] === SLASH ? path : childPath(directory, path);
}

export function childPath(directory: Buffer, name: Buffer): Buffer {
  const bare = directory.at(-1) === SLASH;
  const out = Buffer.allocUnsafe(directory.length + (bare ? 0 : 1) + name.length);
  directory.copy(out);
  if (!bare) out[directory.length] = SLASH;
  name.copy(out, out.length - name.length);
  return out;
}

/**
 * The real path of what need not exist: symbolic links, `.` and `..` are resolved, and the last component may be
 * missing. A `..` behind a file is taken literally, as by OpenSSH.
 *
 * @param path absolute
 * @param readLink of lstat semantics: EINVAL says that a path exists and is no link
 * @throws {PathError} ELOOP; and what `readLink` throws
 */
export async function realPathOfMissing(
  path: Buffer,
  readLink: (path: Buffer) => Promise<Buffer>,
): Promise<Buffer> {
  let resolved = "";
  const rest = path.toString("latin1").split("/").reverse();
  let links = 0;
  for (let steps = 0; rest.length > 0; steps++) {
    if (steps > MAX_STEPS) throw new PathError("ELOOP");
    const name = rest.pop();
    if (!name || name === ".") continue;
    if (name === "..") {
      resolved = resolved.slice(0, Math.max(0, resolved.lastIndexOf("/")));
      continue;
    }
    const candidate = `${resolved}/${name}`;
    let target: string;
    try {
      target = (await readLink(Buffer.from(candidate, "latin1"))).toString("latin1");
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === "ENOENT" && rest.length === 0) return Buffer.from(candidate, "latin1");
      if (errno !== "EINVAL") throw error;
      resolved = candidate;
      continue;
    }
    if (links++ > MAX_SYMLINKS) throw new PathError("ELOOP");
    if (target.startsWith("/")) resolved = "";
    rest.push(...target.split("/").reverse());
  }
  return Buffer.from(resolved === "" ? "/" : resolved, "latin1");
}
