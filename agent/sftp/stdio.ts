// The server as a program of its own, for `sftp -D` and comparisons in tests and benchmarks.
import { Socket } from "node:net";
import os from "node:os";
import { startSftp } from "./server.ts";

const input = new Socket({ fd: 0, readable: true, writable: false });
const output = new Socket({ fd: 1, readable: false, writable: true });
const session = startSftp(
  { directory: process.cwd(), home: process.env["HOME"] ?? os.homedir() },
  {
    output(kind, chunk) {
      if (kind === "stderr") process.stderr.write(chunk);
      else if (!output.write(chunk)) session.pause();
    },
    drain: () => void input.resume(),
    exit: (result) => output.end(() => process.exit(result.kind === "exited" ? result.status : 1)),
  },
);
output.on("drain", () => session.resume());
output.on("error", () => session.hangUp());
input.on("data", (chunk: Uint8Array) => {
  if (!session.write(chunk)) input.pause();
});
input.on("error", () => session.hangUp());
input.once("end", () => session.endInput());
