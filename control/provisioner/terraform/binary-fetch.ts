// Fetches the pinned terraform release. Nothing of the download is used, not even its zip directory, before the
// whole of it has the pinned SHA-256; the program then appears in its place by rename, complete or not at all.
import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, lstat, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createInflateRaw } from "node:zlib";
import { TerraformBinaryError } from "./binary-errors.ts";

export interface Release {
  version: string;
  /** `<os>_<arch>` as in the file's name -> SHA-256 of the zip, hex. */
  sha256: Readonly<Record<string, string>>;
}

/**
 * Checksums of terraform_1.11.4_SHA256SUMS as published in two independent public sources that agree:
 * - HashiCorp's Homebrew formula Formula/terraform.rb, version "1.11.4" (linux and darwin, without 386);
 * - wh1t3fox/tempor, TF_ZIP_HASH for TF_VER "1.11.4" (all six). Its hash of the unpacked linux_amd64 program
 *   is also that of a terraform 1.11.4 installed by other means.
 * chromebrew/chromebrew, packages/terraform.rb at version 1.11.4, confirms linux amd64, 386 and arm.
 * A platform goes in here only with such a source; the others install terraform themselves.
 */
export const TERRAFORM_RELEASE: Release = {
  version: "1.11.4",
  sha256: {
    linux_amd64: "1ce994251c00281d6845f0f268637ba50c0005657eb3cf096b92f753b42ef4dc",
    linux_arm64: "a43d1d0da9b9bab214a8305a39db0e40869572594ccf50c416a7756499143633",
    linux_arm: "3cf072a049ab0178e9cbec47a14712ba7f38cc8ef061f3a7c0ff57b83d320edd",
    linux_386: "8e4bd232ce8b0cde2a90132a9c4d25665791c7a48bbb159f5cd4988265d10372",
    darwin_amd64: "a56d5002b9f7647291faccc3dd1a70350e60fb61e4c45037629508b8fdc2575b",
    darwin_arm64: "867e0808fa971217043e25b7a792b10720c79b1546f8a68479b74f138be73e18",
  },
};

export const OFFICIAL_ADDRESS = "https://releases.hashicorp.com";
/** 1.11.4: 27 MB packed, 91 MB unpacked; with room for later ones. */
const MAX_ZIP_BYTES = 128 << 20;
const MAX_PROGRAM_BYTES = 512 << 20;
const MAX_ZIP_ENTRIES = 100;
const IDLE_TIMEOUT_MS = 30_000;
const PROGRESS_EVERY_BYTES = 4 << 20;
const STALE_MS = 3_600_000;

export interface FetchOptions {
  /** CODER_TERRAFORM_MIRROR replaces https://releases.hashicorp.com; the paths below it are the same. */
  env: NodeJS.ProcessEnv;
  release: Release;
  /** Absolute path of the program. */
  target: string;
  /** Sentence that says how to install terraform by hand. */
  install: string;
  onProgress?: (message: string) => void;
  signal?: AbortSignal;
  idleTimeoutMs?: number;
}

/** This machine as HashiCorp's file names spell it. */
export function releasePlatform(platform: string = process.platform, arch: string = process.arch): string {
  const arches: Record<string, string> = { x64: "amd64", ia32: "386" };
  return `${platform === "win32" ? "windows" : platform}_${arches[arch] ?? arch}`;
}

/**
 * @returns `target`
 * @throws {TerraformBinaryError} ERR_TERRAFORM_MISSING when no checksum is known for this platform,
 *   ERR_TERRAFORM_FETCH, ERR_TERRAFORM_CHECKSUM
 */
export async function fetchTerraform(options: FetchOptions): Promise<string> {
  const { release, target, install, onProgress, signal } = options;
  const platform = releasePlatform();
  const sha256 = Object.hasOwn(release.sha256, platform) ? release.sha256[platform] : undefined;
  if (sha256 === undefined) {
    throw new TerraformBinaryError(
      "ERR_TERRAFORM_MISSING",
      `no terraform on PATH, and none can be fetched for ${platform}: no checksum is known for it. ${install}`,
    );
  }
  const { base, headers } = mirrorAddress(options);
  const url = `${base}/terraform/${release.version}/terraform_${release.version}_${platform}.zip`;
  const folder = path.dirname(target);
  try {
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    throw fetchError(`can't make the cache folder ${folder}: ${(cause as Error).message}.`, install, cause);
  }
  await removeStale(folder);
  const unique = randomBytes(6).toString("hex");
  const zip = path.join(folder, `.new-${unique}.zip`);
  const program = path.join(folder, `.new-${unique}`);
  try {
    onProgress?.(`Fetching terraform ${release.version} from ${url}`);
    const got = await download(url, headers, zip, options);
    if (got !== sha256) {
      throw new TerraformBinaryError(
        "ERR_TERRAFORM_CHECKSUM",
        `${url} isn't the file it should be (SHA-256 ${got}, expected ${sha256}); it was thrown away. ` +
          `Check CODER_TERRAFORM_MIRROR and whatever intercepts downloads. ${install}`,
      );
    }
    await unpackProgram(zip, program, signal);
    await rename(program, target);
    onProgress?.(`Fetched terraform ${release.version}`);
    return target;
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof TerraformBinaryError) throw cause;
    throw fetchError(`fetching ${url} failed: ${explain(cause)}.`, install, cause);
  } finally {
    await rm(zip, { force: true });
    await rm(program, { force: true });
  }
}

function fetchError(problem: string, install: string, cause: unknown): TerraformBinaryError {
  return new TerraformBinaryError(
    "ERR_TERRAFORM_FETCH",
    `${problem} ${install} With a mirror of ${OFFICIAL_ADDRESS}, set CODER_TERRAFORM_MIRROR to its address.`,
    { cause },
  );
}

/** fetch() hides the reason one level down. */
function explain(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error && cause.message ? `${message} (${cause.message})` : message;
}

/** A mirror's address may hold a login: it is sent, but neither shown nor (fetch refuses it) left in the URL. */
function mirrorAddress({ env, install }: FetchOptions): { base: string; headers: Record<string, string> } {
  const given = env["CODER_TERRAFORM_MIRROR"] || OFFICIAL_ADDRESS;
  const address = URL.canParse(given) ? new URL(given) : undefined;
  if (!address || !/^https?:$/.test(address.protocol)) {
    throw fetchError("CODER_TERRAFORM_MIRROR isn't an http or https address.", install, undefined);
  }
  const headers: Record<string, string> = {};
  if (address.username || address.password) {
    const login = [address.username, address.password].map(percentDecoded).join(":");
    headers["authorization"] = `Basic ${Buffer.from(login).toString("base64")}`;
  }
  return { base: address.origin + address.pathname.replace(/\/+$/, ""), headers };
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone % is meant as it stands
  }
}

/** @returns SHA-256 of what was written, hex */
async function download(
  url: string,
  headers: Record<string, string>,
  file: string,
  options: FetchOptions,
): Promise<string> {
  const { onProgress, signal, idleTimeoutMs = IDLE_TIMEOUT_MS } = options;
  const idle = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const alive = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => idle.abort(new Error(`nothing arrived for ${idleTimeoutMs} ms`)), idleTimeoutMs);
  };
  alive();
  try {
    const either = signal ? AbortSignal.any([signal, idle.signal]) : idle.signal;
    const response = await fetch(url, { headers, signal: either, redirect: "follow" });
    if (!response.ok || !response.body) {
      await response.body?.cancel();
      throw new Error(`the server answered ${response.status} ${response.statusText}`.trim());
    }
    const total = Number(response.headers.get("content-length")) || undefined;
    const hash = createHash("sha256");
    let received = 0;
    let announced = 0;
    const measure = new Transform({
      transform(chunk: Uint8Array, _encoding, done) {
        alive();
        received += chunk.length;
        if (received > MAX_ZIP_BYTES) return done(new Error(`it is larger than ${MAX_ZIP_BYTES} bytes`));
        hash.update(chunk);
        if (received - announced >= PROGRESS_EVERY_BYTES) {
          announced = received;
          onProgress?.(`Fetching terraform: ${mib(received)}${total ? ` of ${mib(total)}` : ""} MiB`);
        }
        done(null, chunk);
      },
    });
    const handle = await open(file, "wx", 0o600);
    await pipeline(Readable.fromWeb(response.body as never), measure, handle.createWriteStream(), {
      signal: either,
    });
    return hash.digest("hex");
  } catch (error) {
    // fetch and pipeline report "aborted"; the reason is what explains it.
    throw idle.signal.aborted ? idle.signal.reason : error;
  } finally {
    clearTimeout(timer);
  }
}

function mib(bytes: number): number {
  return Math.round(bytes / (1 << 20));
}

async function removeStale(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!name.startsWith(".new-")) continue;
    const full = path.join(folder, name);
    const found = await lstat(full).catch(() => undefined);
    if (found && Date.now() - found.mtimeMs > STALE_MS) await rm(full, { force: true });
  }
}

/**
 * Writes the zip's entry `terraform` to `program`, executable. Only what such a zip uses is read: no zip64, no
 * encryption.
 *
 * @throws {Error} when it isn't such a zip, or the entry's size differs from the directory's
 */
export async function unpackProgram(zip: string, program: string, signal?: AbortSignal): Promise<void> {
  const handle = await open(zip, "r");
  let entry: ZipEntry;
  try {
    entry = await findEntry(handle, process.platform === "win32" ? "terraform.exe" : "terraform");
  } finally {
    await handle.close();
  }
  const output = await open(program, "wx", 0o755);
  let written = 0;
  const count = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      written += chunk.length;
      done(written > entry.bytes ? new Error("the program is larger than its zip says") : null, chunk);
    },
  });
  const input = createReadStream(zip, { start: entry.start, end: entry.start + entry.packedBytes - 1 });
  const target = output.createWriteStream({ flush: true });
  if (entry.method === DEFLATED) await pipeline(input, createInflateRaw(), count, target, { signal });
  else await pipeline(input, count, target, { signal });
  if (written !== entry.bytes) throw new Error("the program is smaller than its zip says");
}

interface ZipEntry {
  method: number;
  /** Offset of the entry's data in the file. */
  start: number;
  packedBytes: number;
  bytes: number;
}

const STORED = 0;
const DEFLATED = 8;

/** @see https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT sections 4.3.7, 4.3.12, 4.3.16 */
async function findEntry(handle: FileHandle, wanted: string): Promise<ZipEntry> {
  const { size } = await handle.stat();
  const at = async (position: number, length: number): Promise<Buffer> => {
    if (position < 0 || length < 0 || position + length > size)
      throw new Error("its zip directory is damaged");
    const buffer = Buffer.alloc(length);
    await handle.read(buffer, 0, length, position);
    return buffer;
  };
  // The end record is 22 bytes and a comment of at most 65535.
  const tail = await at(Math.max(0, size - 65_557), Math.min(size, 65_557));
  const endAt = tail.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
  if (endAt < 0 || endAt + 22 > tail.length) throw new Error("it isn't a zip file");
  const entries = tail.readUInt16LE(endAt + 10);
  if (entries > MAX_ZIP_ENTRIES) throw new Error(`its zip has more than ${MAX_ZIP_ENTRIES} entries`);
  const directory = await at(tail.readUInt32LE(endAt + 16), tail.readUInt32LE(endAt + 12));
  let offset = 0;
  for (let i = 0; i < entries; i++) {
    if (offset + 46 > directory.length || directory.readUInt32LE(offset) !== 0x02014b50) break;
    const nameBytes = directory.readUInt16LE(offset + 28);
    const name = directory.toString("utf8", offset + 46, offset + 46 + nameBytes);
    if (name === wanted) {
      const method = directory.readUInt16LE(offset + 10);
      const packedBytes = directory.readUInt32LE(offset + 20);
      const bytes = directory.readUInt32LE(offset + 24);
      const headerAt = directory.readUInt32LE(offset + 42);
      if (method !== STORED && method !== DEFLATED) throw new Error(`its zip uses method ${method}`);
      if (bytes > MAX_PROGRAM_BYTES) throw new Error(`its program is larger than ${MAX_PROGRAM_BYTES} bytes`);
      const header = await at(headerAt, 30);
      if (header.readUInt32LE(0) !== 0x04034b50) throw new Error("its zip directory is damaged");
      const start = headerAt + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
      if (packedBytes === 0 || start + packedBytes > size) throw new Error("its zip directory is damaged");
      return { method, start, packedBytes, bytes };
    }
    offset += 46 + nameBytes + directory.readUInt16LE(offset + 30) + directory.readUInt16LE(offset + 32);
  }
  throw new Error(`its zip holds no ${wanted}`);
}
