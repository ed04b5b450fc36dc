import { pino } from "pino";

/** What the agent logs through; pino's shape, so that tests can pass a plain object. */
export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/**
 * JSON lines to `file` (created 0600, its folder too) or to stderr. Written synchronously: an agent logs little,
 * and the last lines before an exit are the ones that matter.
 */
export function createAgentLogger(options: { file?: string; level?: string }): Logger {
  const destination =
    options.file === undefined
      ? pino.destination({ dest: 2, sync: true })
      : pino.destination({ dest: options.file, sync: true, mkdir: true, append: true, mode: 0o600 });
  return pino(
    {
      base: undefined,
      level: options.level ?? "info",
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      // A belt beside the braces: nothing here logs a header, an environment or the manifest.
      redact: {
        paths: ["token", "*.token", "authorization", "*.authorization", "env", "*.env"],
        remove: true,
      },
    },
    destination,
  );
}

/** What is worth logging of a failure: never its cause chain, which may carry a request. */
export function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
