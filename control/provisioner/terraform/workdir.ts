// The folder one job works in: a private temporary folder that holds the unpacked template and disappears with
// the job. The archive comes from a user, so it is unpacked by these rules and not by `tar`.
import {
  chmod,
  copyFile,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { extract, type Header } from "tar-stream";
import { JOB_PREFIX, own, RESCUE_NAME_FILE, STATE_FILE } from "./abandoned.ts";
import { TerraformError } from "./errors.ts";
import type { TemplateFile } from "./variables.ts";

export interface ArchiveLimits {
  maxEntries: number;
  maxTotalBytes: number;
}

export const ARCHIVE_LIMITS: ArchiveLimits = { maxEntries: 10_000, maxTotalBytes: 64 << 20 };
const MAX_NAME_BYTES = 1024;
const MAX_DEPTH = 64;
/** A unix socket's path must stay under 108 bytes, and the provider's lies below this folder. */
const MAX_ROOT_CHARS = 60;

export interface WorkDir {
  /** 0700; everything below goes with `remove()`. */
  root: string;
  /** Where terraform runs: the template's own files. */
  templateDir: string;
  /** TF_DATA_DIR. */
  dataDir: string;
  /** For the provider's socket. */
  socketDir: string;
  statePath: string;
  /** From now on the state is worth keeping, by this file name, should this process be killed. */
  rescueAs(name: string): Promise<void>;
  remove(): Promise<void>;
}

/** Where job folders are made unless another place is given. */
export function workBase(): string {
  return tmpdir().length < MAX_ROOT_CHARS ? tmpdir() : "/tmp";
}

export async function createWorkDir(base = workBase()): Promise<WorkDir> {
  const root = await mkdtemp(path.join(base, JOB_PREFIX));
  const owned = await own(root);
  const dirs = {
    templateDir: path.join(root, "t"),
    dataDir: path.join(root, "d"),
    socketDir: path.join(root, "s"),
  };
  for (const dir of Object.values(dirs)) await mkdir(dir, { mode: 0o700 });
  return {
    root,
    ...dirs,
    statePath: path.join(root, STATE_FILE),
    rescueAs: (name) => writeFile(path.join(root, RESCUE_NAME_FILE), name, { mode: 0o600 }),
    // Providers and modules may be read-only trees; `force` covers a folder already gone.
    async remove() {
      owned.close();
      await rm(root, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}

/**
 * Unpacks a template's tar into an empty folder. Accepted: files, folders, and links that stay inside; left out:
 * Terraform's own leavings (`.terraform/`, state files), which would shadow ours.
 *
 * @throws {TerraformError} ERR_TEMPLATE_ARCHIVE, naming the entry
 */
export async function unpackTemplate(
  archive: Uint8Array,
  dir: string,
  limits: ArchiveLimits = ARCHIVE_LIMITS,
): Promise<void> {
  if (archive[0] === 0x1f && archive[1] === 0x8b) throw refuse("it is compressed; upload a plain tar");
  if (archive[0] === 0x50 && archive[1] === 0x4b) throw refuse("it is a zip file; upload a plain tar");
  const root = await realpath(dir);
  const links = new Map<string, string>();
  const reader = extract();
  let entries = 0;
  let totalBytes = 0;
  const count = (bytes: number) => {
    totalBytes += bytes;
    if (totalBytes > limits.maxTotalBytes)
      throw refuse(`its files hold more than ${limits.maxTotalBytes} bytes`);
  };
  reader.end(archive);
  try {
    for await (const entry of reader) {
      const { header } = entry;
      if (++entries > limits.maxEntries) throw refuse(`it has more than ${limits.maxEntries} entries`);
      count(header.size ?? 0);
      const name = safeName(header.name);
      const chunks: Uint8Array[] = [];
      // A folder has no content, whatever its size says, and tar-stream's reader of one would wait for it for ever.
      if (header.type !== "directory") for await (const chunk of entry) chunks.push(chunk as Uint8Array);
      if (name === "" || isLeftover(name)) continue;
      if (hasLinkAbove(name, links)) throw refuse(`${shown(name)} lies below a link`);
      const target = path.join(root, name);
      await makeEntry(header, name, target);
      if (header.type === "symlink") links.set(name, header.linkname ?? "");
      else links.delete(name);
      if (header.type === "file" || header.type === "contiguous-file")
        await putFile(target, Buffer.concat(chunks), header.mode);
      if (header.type === "link") {
        const source = safeName(header.linkname ?? "");
        const info =
          source && !links.has(source)
            ? await lstat(path.join(root, source)).catch(() => undefined)
            : undefined;
        if (!info?.isFile())
          throw refuse(`${shown(name)} is a hard link to something that isn't an earlier file`);
        count(info.size); // we copy it
        await rm(target, { force: true });
        await copyFile(path.join(root, source), target);
      }
    }
    await makeLinks(root, links);
  } catch (cause) {
    if (cause instanceof TerraformError) throw cause;
    throw refuse(`it can't be read: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
  }
}

/** Checks the entry's kind and prepares its place. */
async function makeEntry(header: Header, name: string, target: string): Promise<void> {
  switch (header.type) {
    case "directory":
      await mkdir(target, { recursive: true, mode: 0o700 });
      return;
    case "file":
    case "contiguous-file":
    case "link":
    case "symlink":
      await mkdir(path.dirname(target), { recursive: true, mode: 0o700 });
      return;
    default:
      throw refuse(`${shown(name)} is a ${header.type}; only files, folders and links are accepted`);
  }
}

async function putFile(target: string, content: Uint8Array, mode: number | undefined): Promise<void> {
  await rm(target, { force: true });
  await writeFile(target, content, { flag: "wx", mode: 0o600 });
  if (((mode ?? 0) & 0o100) !== 0) await chmod(target, 0o700);
}

/**
 * Links come last, so that nothing is ever written through one. Whether one leads outside can't be told from its
 * text (a link to a link to a parent), so each is made and then resolved.
 */
async function makeLinks(root: string, links: Map<string, string>): Promise<void> {
  for (const [name, linkname] of links) {
    if (path.isAbsolute(linkname))
      throw refuse(`${shown(name)} is a link to the absolute path ${shown(linkname)}`);
    await rm(path.join(root, name), { force: true });
    await symlink(linkname, path.join(root, name));
  }
  for (const name of links.keys()) {
    const real = await realpath(path.join(root, name)).catch(() => undefined);
    if (real === undefined) throw refuse(`${shown(name)} is a link to nothing`);
    if (real !== root && !real.startsWith(root + path.sep))
      throw refuse(`${shown(name)} is a link out of the template`);
  }
}

/** @returns the name relative to the template's root, "" for the root itself */
function safeName(raw: string): string {
  if (Buffer.byteLength(raw) > MAX_NAME_BYTES) throw refuse(`a name is longer than ${MAX_NAME_BYTES} bytes`);
  if (raw.includes("\0")) throw refuse("a name holds a zero byte");
  if (raw.startsWith("/") || raw.startsWith("\\") || /^[A-Za-z]:[\\/]/.test(raw))
    throw refuse(`${shown(raw)} is an absolute path`);
  const parts = raw.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.some((part) => part === ".." || part.split("\\").includes("..")))
    throw refuse(`${shown(raw)} leads out of the template`);
  if (parts.length > MAX_DEPTH) throw refuse(`${shown(raw)} is nested deeper than ${MAX_DEPTH} folders`);
  return parts.join("/");
}

function isLeftover(name: string): boolean {
  return name.split("/").includes(".terraform") || /^terraform\.tfstate(\.|$)/.test(name);
}

function hasLinkAbove(name: string, links: Map<string, string>): boolean {
  const parts = name.split("/");
  return parts.some((_, index) => index > 0 && links.has(parts.slice(0, index).join("/")));
}

function shown(name: string): string {
  return JSON.stringify(name.length > 100 ? `${name.slice(0, 100)}...` : name);
}

function refuse(why: string, cause?: unknown): TerraformError {
  return new TerraformError("ERR_TEMPLATE_ARCHIVE", `the template archive is refused: ${why}`, { cause });
}

/** @returns the root module's Terraform files, and its README ("" when there is none) */
export async function readTemplate(dir: string): Promise<{ files: TemplateFile[]; readme: string }> {
  const names = (await readdir(dir, { withFileTypes: true })).filter((item) => !item.isDirectory());
  const files: TemplateFile[] = [];
  for (const { name } of names)
    if (/\.tf(\.json)?$/.test(name)) files.push({ name, text: await readFile(path.join(dir, name), "utf8") });
  if (files.length === 0)
    throw refuse("it has no Terraform file (*.tf) at its top level; push the folder that holds main.tf");
  const readme = names.find(({ name }) => /^readme\.md$/i.test(name));
  return { files, readme: readme ? await readFile(path.join(dir, readme.name), "utf8") : "" };
}
