// Terraform's `-json` output, one object per line, turned into lines people read. Pure.
import type { LogLevel } from "../protocol.ts";

export interface Diagnostic {
  severity: "error" | "warning";
  summary: string;
  detail: string;
  address?: string;
  range?: { filename: string; start: { line: number } };
  snippet?: {
    context?: string | null;
    code: string;
    start_line: number;
    values?: { traversal: string; statement: string }[] | null;
  };
}

export interface TerraformMessage {
  /** One line of the plan; an apply says them all again before it starts. */
  isPlannedChange?: boolean;
  level: LogLevel;
  /** One or more lines of text. */
  lines: string[];
  diagnostic?: Diagnostic;
}

const LEVELS: Record<string, LogLevel> = {
  trace: "trace",
  debug: "debug",
  info: "info",
  warn: "warn",
  error: "error",
};

/** Said by every command before it does anything, or only of use to a program. */
const QUIET_TYPES = new Set(["version", "outputs", "refresh_start", "refresh_complete"]);

/** @returns the message of one output line, or undefined for an empty line; text that isn't JSON passes as it is */
export function parseMessage(line: string): TerraformMessage | undefined {
  const plain = { level: "info" as const, lines: toLines(line) };
  if (!line.trim()) return undefined;
  if (!line.startsWith("{")) return plain;
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return plain;
  }
  if (typeof value !== "object" || value === null) return plain;
  const fields = value as Record<string, unknown>;
  const text = fields["@message"];
  if (typeof text !== "string") return plain;
  const level = LEVELS[String(fields["@level"])] ?? "info";
  const diagnostic = fields["type"] === "diagnostic" ? readDiagnostic(fields["diagnostic"]) : undefined;
  if (diagnostic) return { level, lines: formatDiagnostic(diagnostic), diagnostic };
  const planned = fields["type"] === "planned_change" ? { isPlannedChange: true } : {};
  return { level: isDetail(fields) ? "debug" : level, lines: toLines(text), ...planned };
}

/** What a person who follows a build does not need: reads of data, which take no time, and headings of nothing. */
function isDetail(fields: Record<string, unknown>): boolean {
  if (QUIET_TYPES.has(String(fields["type"]))) return true;
  const hook = fields["hook"];
  return typeof hook === "object" && hook !== null && "action" in hook && hook.action === "read";
}

/** The way Terraform prints a diagnostic on a terminal, without the box. */
export function formatDiagnostic(diagnostic: Diagnostic): string[] {
  const { severity, summary, detail, address, range, snippet } = diagnostic;
  const lines = toLines(`${severity === "error" ? "Error" : "Warning"}: ${summary}`);
  if (address && !snippet?.context) lines.push("", `  with ${address},`);
  if (range) {
    lines.push(
      "",
      `  on ${range.filename} line ${range.start.line}${snippet?.context ? `, in ${snippet.context}` : ""}:`,
    );
    if (snippet) {
      const code = snippet.code.split("\n").map((text, index) => `  ${snippet.start_line + index}: ${text}`);
      lines.push(...code);
      const values = snippet.values ?? [];
      lines.push(...values.map(({ traversal, statement }) => `    ${traversal} ${statement}`));
    }
  }
  if (detail) lines.push("", ...toLines(detail.trimEnd()));
  return lines;
}

const MAX_SUMMARY_CHARS = 2000;

/** One paragraph for a job's error: the first error with its place, and how many follow. */
export function summarize(errors: Diagnostic[]): string {
  const [first, ...more] = errors;
  if (!first) return "";
  const where = first.range ? `${first.range.filename} line ${first.range.start.line}: ` : "";
  const text = `${where}${first.summary}${first.detail ? `: ${first.detail.trim()}` : ""}`;
  const short = text.length > MAX_SUMMARY_CHARS ? `${text.slice(0, MAX_SUMMARY_CHARS)}...` : text;
  return more.length > 0 ? `${short} (and ${more.length} more error${more.length > 1 ? "s" : ""})` : short;
}

/** @returns names of root variables without a value, when that is what these errors say */
export function missingVariables(errors: Diagnostic[]): string[] {
  return errors
    .filter(({ summary }) => summary === "No value for required variable")
    .flatMap(({ detail, snippet }) => {
      const name = /input variable "([^"]+)"/.exec(detail) ?? /variable "([^"]+)"/.exec(snippet?.code ?? "");
      return name ? [name[1]!] : [];
    });
}

const MIN_SECRET_CHARS = 8;

/** @returns a function that blanks the given values; short ones are left, they would blank ordinary words */
export function redactor(secrets: readonly string[]): (text: string) => string {
  const parts = secrets
    .flatMap((secret) => secret.split("\n"))
    .map((part) => part.trim())
    .filter((part) => part.length >= MIN_SECRET_CHARS)
    .sort((a, b) => b.length - a.length);
  if (parts.length === 0) return (text) => text;
  const pattern = new RegExp(
    parts.map((part) => part.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&")).join("|"),
    "g",
  );
  return (text) => text.replace(pattern, "[hidden]");
}

function toLines(text: string): string[] {
  return text.split(/\r?\n/);
}

/** Takes what is of the right type; Terraform's own form changes with its versions. */
function readDiagnostic(value: unknown): Diagnostic | undefined {
  const { severity, summary, detail, address, range, snippet } = recordOf(value);
  if ((severity !== "error" && severity !== "warning") || typeof summary !== "string") return undefined;
  const { filename, start } = recordOf(range);
  const { line } = recordOf(start);
  const { context, code, start_line: startLine, values } = recordOf(snippet);
  return {
    severity,
    summary,
    detail: textOf(detail) ?? "",
    address: textOf(address),
    ...(typeof filename === "string" && typeof line === "number" && { range: { filename, start: { line } } }),
    ...(typeof code === "string" &&
      typeof startLine === "number" && {
        snippet: {
          context: textOf(context),
          code,
          start_line: startLine,
          values: (Array.isArray(values) ? values : []).flatMap((one: unknown) => {
            const { traversal, statement } = recordOf(one);
            return typeof traversal === "string" && typeof statement === "string"
              ? [{ traversal, statement }]
              : [];
          }),
        },
      }),
  };
}

const textOf = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);
const recordOf = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
