/**
 * What may be logged or shown of an error. The query builder puts the whole statement, its values included, in
 * front of a database error's message: password hashes and tokens among them. Only PostgreSQL's own words are
 * kept, which are what follows the last " - ".
 */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (!("severity" in error) || !("code" in error)) return error.message;
  return `${error.message.slice(error.message.lastIndexOf(" - ") + 1).replace(/^- /, "")} (SQLSTATE ${error.code})`;
}

/** The same, with the places it came from. */
export function errorTrace(error: unknown): string {
  const frames = error instanceof Error ? (error.stack?.match(/^ {4}at .*$/gm) ?? []) : [];
  return [errorText(error), ...frames].join("\n");
}
