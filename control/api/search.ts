// The `q=` syntax: `key:value` separated by spaces, quotes around a value with spaces, bare words for the list's
// default. Pure. Lower-cased as a whole. An unknown key, a key given twice or an open quote is a problem by name.
import type { Validation } from "./errors.ts";

export const MAX_SEARCH_CHARS = 1024;

export interface Search<Key extends string> {
  words: string[];
  keys: Partial<Record<Key, string>>;
  problems: Validation[];
}

export function parseSearch<Key extends string>(text: string, known: readonly Key[]): Search<Key> {
  const search: Search<Key> = { words: [], keys: {}, problems: [] };
  const problem = (detail: string) => search.problems.push({ field: "q", detail });
  const terms = splitTerms(text.toLowerCase());
  if (!terms) {
    problem("A quote is not closed.");
    return search;
  }
  for (const { key, value } of terms) {
    if (key === undefined) {
      if (value !== "") search.words.push(value);
      continue;
    }
    const name = known.find((candidate) => candidate === key);
    if (name === undefined)
      search.problems.push({
        field: key,
        detail: `"${key}" is not a valid query param. Known: ${known.join(", ")}`,
      });
    else if (search.keys[name] !== undefined)
      search.problems.push({ field: key, detail: `"${key}" is given twice.` });
    else if (value === "") search.problems.push({ field: key, detail: `"${key}" has no value.` });
    else search.keys[name] = value;
  }
  return search;
}

/** @returns undefined when a quote is left open */
function splitTerms(text: string): { key?: string; value: string }[] | undefined {
  const terms: { key?: string; value: string }[] = [];
  let key: string | undefined;
  let value = "";
  let quoted = false;
  const flush = () => {
    if (key !== undefined || value !== "") terms.push({ key, value });
    key = undefined;
    value = "";
  };
  for (const char of text) {
    if (char === '"') quoted = !quoted;
    else if (quoted) value += char;
    else if (/\s/.test(char)) flush();
    else if (char === ":" && key === undefined) {
      key = value;
      value = "";
    } else value += char;
  }
  flush();
  return quoted ? undefined : terms;
}

/** A user's text as a LIKE pattern that finds it anywhere. */
export const containsPattern = (text: string): string => `%${text.replace(/[\\%_]/g, "\\$&")}%`;
