// Names of users and groups, as /etc/passwd and /etc/group have them. Accounts of a directory service (NSS) are
// told as numbers: asking it would mean a process for each.
import fs from "node:fs";

/** A file larger than this is no account database of a workspace. */
const MAX_FILE_BYTES = 8 * 1024 * 1024;

export interface User {
  name: string;
  uid: number;
  home: string;
}

const fields = (text: string): string[][] =>
  text
    .split("\n")
    .filter((line) => line !== "" && !/^[#+-]/.test(line)) // + and -: where NIS would be asked
    .map((line) => line.split(":"));

const isId = (text: string | undefined): text is string => text !== undefined && /^\d{1,10}$/.test(text);

/** The users in passwd(5) text, in its order. */
export function parsePasswd(text: string): User[] {
  return fields(text).flatMap(([name, , uid, , , home]) =>
    name && isId(uid) ? [{ name, uid: Number(uid), home: home ?? "" }] : [],
  );
}

/** gid → name in group(5) text; as getgrgid, the first line of a gid counts. */
export function parseGroups(text: string): Map<number, string> {
  const names = new Map<number, string>();
  for (const [name, , gid] of fields(text))
    if (name && isId(gid) && !names.has(Number(gid))) names.set(Number(gid), name);
  return names;
}

interface Cached<T> {
  signature: string;
  value: T;
}

/** Reads a small file again only when it changed. Missing or unreadable: as if empty. */
async function cached<T>(
  file: string,
  last: Cached<T> | undefined,
  parse: (text: string) => T,
): Promise<Cached<T>> {
  try {
    const { mtimeMs, size, ino } = await fs.promises.stat(file);
    const signature = `${ino}:${size}:${mtimeMs}`;
    if (last?.signature === signature) return last;
    if (size > MAX_FILE_BYTES) return { signature, value: parse("") };
    return { signature, value: parse(await fs.promises.readFile(file, "utf8")) };
  } catch {
    return { signature: "", value: parse("") };
  }
}

interface Users {
  byId: Map<number, User>;
  byName: Map<string, User>;
}

function indexUsers(text: string): Users {
  const users: Users = { byId: new Map(), byName: new Map() };
  for (const user of parsePasswd(text)) {
    if (!users.byId.has(user.uid)) users.byId.set(user.uid, user);
    if (!users.byName.has(user.name)) users.byName.set(user.name, user);
  }
  return users;
}

/** Account names of this machine. `refresh` reads what changed; the look-ups then don't wait. */
export class Accounts {
  readonly #files: { passwd: string; group: string };
  #users: Cached<Users> = { signature: "unread", value: indexUsers("") };
  #groups: Cached<Map<number, string>> = { signature: "unread", value: new Map() };
  constructor(files = { passwd: "/etc/passwd", group: "/etc/group" }) {
    this.#files = files;
  }

  async refresh(): Promise<void> {
    this.#users = await cached(this.#files.passwd, this.#users, indexUsers);
    this.#groups = await cached(this.#files.group, this.#groups, parseGroups);
  }

  userName(uid: number): string | undefined {
    return this.#users.value.byId.get(uid)?.name;
  }

  groupName(gid: number): string | undefined {
    return this.#groups.value.get(gid);
  }

  homeOf(username: string): string | undefined {
    return this.#users.value.byName.get(username)?.home;
  }
}
