import type { Readable, Writable } from "node:stream";
import type { WindowSize } from "../../mesh/wire/channel.ts";

/** What we use of a tty.ReadStream, where there is one. */
interface RawModeInput {
  isRaw?: boolean;
  setRawMode(raw: boolean): unknown;
}

function canBeRaw(input: object): input is RawModeInput {
  return "setRawMode" in input && typeof input.setRawMode === "function";
}

/**
 * Hands every key to the program (Ctrl-C too) until the function returned is called. Calling that again does
 * nothing; an exit of the process calls it, whatever the reason. A shell that stopped us (SIGSTOP, SIGTSTP) has set its
 * own mode meanwhile, so SIGCONT sets ours again.
 */
export function enterRawMode(input: Readable): () => void {
  if (!canBeRaw(input)) return () => {};
  const before = input.isRaw === true;
  input.setRawMode(true);
  let done = false;
  const again = () => {
    // libuv takes a mode it believes to be set for nothing to do.
    input.setRawMode(false);
    input.setRawMode(true);
  };
  const restore = () => {
    if (done) return;
    done = true;
    process.removeListener("exit", restore);
    process.removeListener("SIGCONT", again);
    try {
      input.setRawMode(before);
    } catch {
      // the terminal itself is gone
    }
  };
  process.once("exit", restore);
  process.on("SIGCONT", again);
  return restore;
}

/** @returns 80 x 24 when `output` is no terminal or does not know */
export function windowSize(output: Writable): WindowSize {
  const { columns, rows } = output as Writable & { columns?: number; rows?: number };
  return { cols: columns || 80, rows: rows || 24, widthPx: 0, heightPx: 0 };
}

/**
 * Stops this process as Ctrl-Z does, the terminal as the shell expects it. Whoever entered raw mode sets it again at
 * SIGCONT.
 */
export function suspendProcess(input: Readable): void {
  if (process.platform === "win32" || !canBeRaw(input)) return;
  input.setRawMode(false);
  process.kill(process.pid, "SIGTSTP");
}
