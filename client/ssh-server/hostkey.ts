import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
} from "node:crypto";
import { linkSync, mkdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { CliError } from "../errors.ts";

export const HOST_KEY_TYPE = "ssh-ed25519";
/** Its name in the config folder. */
export const HOST_KEY_FILE = "ssh_host_ed25519_key";

/** The key by which OpenSSH knows the SSH server in this process, in the shape that ssh2's transport asks for. */
export interface HostKey {
  /** RFC 8709 section 4. */
  getPublicSSH(): Buffer;
  sign(data: Buffer): Buffer;
}

function sshString(bytes: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

function hostKeyOf(key: KeyObject): HostKey {
  if (key.asymmetricKeyType !== "ed25519") throw new Error("it is no Ed25519 key");
  const { x } = createPublicKey(key).export({ format: "jwk" });
  const blob = Buffer.concat([
    sshString(Buffer.from(HOST_KEY_TYPE)),
    sshString(Buffer.from(x ?? "", "base64url")),
  ]);
  return { getPublicSSH: () => blob, sign: (data) => sign(null, data, key) };
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && (error as NodeJS.ErrnoException).code === code;
}

/** Writes a new key whole or not at all; when another process was faster, its key counts. */
function createKeyFile(file: string): void {
  mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  const pem = generateKeyPairSync("ed25519").privateKey.export({ format: "pem", type: "pkcs8" });
  const temporary = `${file}.${randomBytes(6).toString("hex")}`;
  writeFileSync(temporary, pem, { mode: 0o600, flag: "wx" });
  try {
    linkSync(temporary, file);
  } catch (error) {
    if (isCode(error, "EEXIST")) return;
    // A file system without hard links.
    writeFileSync(file, pem, { mode: 0o600, flag: "wx" });
  } finally {
    unlinkSync(temporary);
  }
}

/**
 * The machine's host key, made on first use (PKCS #8 PEM, mode 0600).
 *
 * @throws {CliError} ERR_HOST_KEY when the file can't be read, written or is no Ed25519 key
 */
export function loadHostKey(file: string): HostKey {
  try {
    let pem: Buffer;
    try {
      pem = readFileSync(file);
    } catch (error) {
      if (!isCode(error, "ENOENT")) throw error;
      createKeyFile(file);
      pem = readFileSync(file);
    }
    return hostKeyOf(createPrivateKey(pem));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new CliError("ERR_HOST_KEY", `the SSH host key ${file} can't be used: ${reason}`, {
      cause,
      hint: "Delete the file if it is damaged, then run `coder config-ssh` again: it makes a new one.",
    });
  }
}

/** One line of a known_hosts file: `name` has this key. */
export const knownHostsLine = (name: string, key: HostKey): string =>
  `${name} ${HOST_KEY_TYPE} ${key.getPublicSSH().toString("base64")}\n`;
