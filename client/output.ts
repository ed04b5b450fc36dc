import { Option } from "commander";
import { CliError } from "./errors.ts";
import { printable } from "./text.ts";

export type OutputFormat = "table" | "json" | "text";

export function outputOption(...formats: OutputFormat[]): Option {
  return new Option("-o, --output <format>", "output format").choices(formats).default(formats[0]);
}

/** JSON itself escapes only what is below U+0020; DEL and the controls above it (U+009B is CSI) steer terminals, too. */
export const formatJson = (value: unknown): string =>
  JSON.stringify(value, null, 2).replace(
    /[\x7f-\x9f]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

export function printJson(value: unknown): void {
  process.stdout.write(`${formatJson(value)}\n`);
}

/** Left-aligned columns, two spaces apart, headings in capitals; an empty list prints headings alone. */
export function formatTable(rows: readonly Record<string, string>[], columns: readonly string[]): string {
  const clean = (text: string) => printable(text).replace(/[\t\n]/g, " ");
  const lines = [
    columns.map((column) => column.toUpperCase()),
    ...rows.map((row) => columns.map((column) => clean(row[column] ?? ""))),
  ];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  return lines
    .map((line) => `${line.map((cell, i) => cell.padEnd(widths[i])).join("  ")}`.trimEnd())
    .join("\n");
}

export function printTable(rows: readonly Record<string, string>[], columns: readonly string[]): void {
  process.stdout.write(`${formatTable(rows, columns)}\n`);
}

/** Progress and remarks: never on stdout, which belongs to results. */
export function say(line: string): void {
  process.stderr.write(`${printable(line)}\n`);
}

/** "3h12m", "45s", as people read ages. */
export function formatAge(fromMs: number, nowMs: number): string {
  const seconds = Math.max(0, Math.round((nowMs - fromMs) / 1000));
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor((seconds % 86_400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days > 0) return `${days}d${hours}h`;
  if (hours > 0) return `${hours}h${minutes}m`;
  if (minutes > 0) return `${minutes}m${seconds % 60}s`;
  return `${seconds}s`;
}

/** Asks on the terminal. `flag` is what answers instead. @throws {CliError} ERR_NO_TERMINAL without one */
export async function prompt(
  question: string,
  flag: string,
  options: { secret?: boolean } = {},
): Promise<string> {
  if (!process.stdin.isTTY)
    throw new CliError(
      "ERR_NO_TERMINAL",
      `${question.replace(/[:?]? *$/, "")}: there is no terminal to ask on`,
      {
        hint: `Answer it with ${flag}.`,
      },
    );
  const { createInterface } = await import("node:readline");
  const { Writable } = await import("node:stream");
  let muted = false;
  const output = new Writable({
    write(chunk, _encoding, done) {
      if (!muted) process.stderr.write(chunk);
      done();
    },
  });
  const reader = createInterface({ input: process.stdin, output, terminal: true });
  try {
    return await new Promise<string>((resolve, reject) => {
      reader.on("SIGINT", () => reject(new CliError("ERR_INTERRUPTED", "interrupted", { exitCode: 130 })));
      reader.on("close", () => reject(new CliError("ERR_INTERRUPTED", "no answer", { exitCode: 130 })));
      reader.question(`${question} `, (answer) => resolve(answer));
      muted = options.secret === true;
    });
  } finally {
    reader.removeAllListeners("close");
    reader.close();
    if (muted) process.stderr.write("\n");
  }
}

/** @throws {CliError} ERR_DECLINED */
export async function confirm(question: string, yes: boolean | undefined): Promise<void> {
  if (yes) return;
  const answer = await prompt(`${question} (yes/no)`, "--yes");
  if (!/^y(es)?$/i.test(answer.trim())) throw new CliError("ERR_DECLINED", "Nothing was done.");
}
