// Texts of a request that PostgreSQL can't keep: U+0000, and half a surrogate pair. Found here they are the caller's
// mistake, with the field's name; found by the database they would be our 500.

const UNSTORABLE = /[\u0000\ud800-\udfff]/u; // with the u flag a whole pair is one character, and no match

/** A body is at most 1 MiB of JSON; deeper than this no schema of ours goes. */
const MAX_DEPTH = 64;

/** @returns the path of the first text or key that can't be stored; undefined when all can */
export function findUnstorable(value: unknown, path: readonly string[] = []): string[] | undefined {
  if (typeof value === "string") return UNSTORABLE.test(value) ? [...path] : undefined;
  if (typeof value !== "object" || value === null) return undefined;
  if (path.length >= MAX_DEPTH) return [...path];
  for (const [key, item] of Object.entries(value)) {
    if (UNSTORABLE.test(key)) return [...path];
    const found = findUnstorable(item, [...path, key]);
    if (found) return found;
  }
  return undefined;
}
