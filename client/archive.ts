import { createReadStream } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { pack } from "tar-stream";
import { CliError } from "./errors.ts";

/** Never part of a template: Terraform's own working files hold state and downloads. */
const IGNORED = /^(\.terraform|\.git|\.DS_Store|terraform\.tfstate.*|.*\.tfvars(\.json)?|crash\.log)$/;
const MAX_FILES = 10_000;

/**
 * Packs a template folder as tar, sorted and without owners or times, so that the same files give the same bytes.
 *
 * @throws {CliError} ERR_TEMPLATE_DIRECTORY, ERR_TEMPLATE_TOO_LARGE
 */
export async function packDirectory(directory: string, maxBytes: number): Promise<Buffer> {
  const files = await listFiles(directory);
  if (!files.some((name) => /\.tf(\.json)?$/.test(name)))
    throw new CliError("ERR_TEMPLATE_DIRECTORY", `There is no Terraform file (*.tf) in ${directory}.`, {
      hint: "Name the folder with --directory, or start one with `coder templates init`.",
    });
  const archive = pack();
  const chunks: Buffer[] = [];
  let length = 0;
  const collected = (async () => {
    for await (const chunk of archive as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length <= maxBytes) chunks.push(chunk);
    }
  })();
  for (const name of files) {
    const full = path.join(directory, name);
    const { size, mode } = await lstat(full);
    // Beyond the limit only the total is of interest, for the message.
    const entry = archive.entry({ name, size, mode: mode & 0o111 ? 0o755 : 0o644, mtime: new Date(0) });
    await pipeline(createReadStream(full, { end: Math.max(0, size - 1) }), entry);
  }
  archive.finalize();
  await collected;
  if (length > maxBytes)
    throw new CliError(
      "ERR_TEMPLATE_TOO_LARGE",
      `The template is ${Math.ceil(length / 1024)} KiB; at most ${Math.floor(maxBytes / 1024)} KiB are taken.`,
      { hint: "Move large files out of the folder; images and archives belong in a registry." },
    );
  return Buffer.concat(chunks);
}

async function listFiles(directory: string, prefix = ""): Promise<string[]> {
  let entries: import("node:fs").Dirent[];
  try {
    entries = await readdir(path.join(directory, prefix), { withFileTypes: true });
  } catch (cause) {
    throw new CliError("ERR_TEMPLATE_DIRECTORY", `Cannot read ${directory}: ${(cause as Error).message}`, {
      cause,
    });
  }
  const found: string[] = [];
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const name = prefix ? `${prefix}/${entry.name}` : entry.name;
    if (IGNORED.test(entry.name)) continue;
    if (entry.isDirectory()) found.push(...(await listFiles(directory, name)));
    else if (entry.isFile()) found.push(name);
    if (found.length > MAX_FILES)
      throw new CliError("ERR_TEMPLATE_TOO_LARGE", `${directory} holds more than ${MAX_FILES} files.`);
  }
  return found;
}
