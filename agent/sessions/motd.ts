import fs from "node:fs";
import path from "node:path";

/** More is no message of the day. */
export const MAX_MOTD_BYTES = 64 * 1024;

/**
 * What an interactive login shows before its shell's first prompt, as a terminal needs it (CR LF). Nothing for a user
 * with a ~/.hushlogin, and nothing when the file can't be read: a template's typo must not keep anybody out.
 *
 * @param file absolute; "" for none
 */
export function messageOfTheDay(file: string, homeDir: string): Buffer | undefined {
  if (file === "" || fs.existsSync(path.join(homeDir, ".hushlogin"))) return undefined;
  let fd: number | undefined;
  try {
    // A FIFO would wait for its writer.
    fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    if (!fs.fstatSync(fd).isFile()) return undefined;
    const buffer = Buffer.alloc(MAX_MOTD_BYTES);
    const text = buffer.subarray(0, fs.readSync(fd, buffer, 0, MAX_MOTD_BYTES, 0)).toString("latin1");
    if (text === "") return undefined;
    const closed = text.endsWith("\n") ? text : `${text}\n`;
    return Buffer.from(closed.replace(/\r?\n/g, "\r\n"), "latin1");
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}
