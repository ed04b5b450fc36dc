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
 * nothing; an exit of the process calls it, whatever the reason.
 */
export function enterRawMode(input: Readable): () => void {
  if (!canBeRaw(input)) return () => {};
  const before = input.isRaw === true;
  input.setRawMode(true);
  let done = false;
  const restore = () => {
    if (done) return;
    done = true;
    process.removeListener("exit", restore);
    try {
      input.setRawMode(before);
    } catch {
      // the terminal itself is gone
    }
  };
  process.once("exit", restore);
  return restore;
}

/** @returns 80 x 24 when `output` is no terminal or does not know */
export function windowSize(output: Writable): WindowSize {
  const { columns, rows } = output as Writable & { columns?: number; rows?: number };
  return { cols: columns || 80, rows: rows || 24, widthPx: 0, heightPx: 0 };
}
