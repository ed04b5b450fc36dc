import fs from "node:fs";
import os from "node:os";
import path from "node:path";

/** What sun_path leaves for a folder's name when "/coder-XXXXXX/agent" is to follow. */
const MAX_PARENT_BYTES = 80;

/** A folder only this user may enter (0700), for one session's socket and files. */
export class PrivateDir {
  readonly path: string;

  /** @throws when neither the temporary folder nor /tmp can be written */
  constructor(parent = os.tmpdir()) {
    const short = Buffer.byteLength(parent) <= MAX_PARENT_BYTES ? parent : "/tmp";
    this.path = fs.mkdtempSync(path.join(short, "coder-")); // mkdtemp makes it 0700
  }

  file(name: string): string {
    return path.join(this.path, name);
  }

  remove(): void {
    try {
      fs.rmSync(this.path, { recursive: true, force: true });
    } catch {
      // Something the session put there; the system cleans its temporary folder.
    }
  }
}
