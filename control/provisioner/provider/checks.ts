// Checks of single values, for the schema tables.
import { urlProblem } from "./go-syntax.ts";
import type { Check, Finding } from "./schema.ts";
import { error } from "./schema.ts";
import { isObject, knownItems, type ObjectValue, UNKNOWN } from "./value.ts";

const wrong = (detail: string) => [{ severity: "error" as const, detail }];

export const oneOf =
  (...allowed: string[]): Check =>
  (value) =>
    allowed.includes(String(value))
      ? []
      : wrong(
          `expected one of ${allowed.map((x) => JSON.stringify(x)).join(", ")}, got ${JSON.stringify(value)}`,
        );

export const atLeast =
  (least: number): Check =>
  (value) =>
    Number(value) >= least ? [] : wrong(`expected at least ${least}, got ${value}`);

export const between =
  (least: number, most: number): Check =>
  (value) =>
    Number(value) >= least && Number(value) <= most
      ? []
      : wrong(`expected ${least} to ${most}, got ${value}`);

/** Characters are Unicode code points, or bytes of UTF-8 where the original provider counts those. */
export const atMostCharacters =
  (most: number): Check =>
  (value) => {
    const length = [...String(value)].length;
    return length <= most ? [] : wrong(`expected at most ${most} characters, got ${length}`);
  };

export const nonEmpty: Check = (value) => (value === "" ? wrong("must not be empty") : []);

export const url: Check = (value) => {
  const problem = urlProblem(String(value));
  return problem ? wrong(`${JSON.stringify(value)} is not a URL: ${problem}`) : [];
};

export const uuid: Check = (value) =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(String(value))
    ? []
    : wrong(`${JSON.stringify(value)} is not a UUID`);

export const pattern =
  (regex: RegExp, expected: string): Check =>
  (value) =>
    regex.test(String(value)) ? [] : wrong(`${JSON.stringify(value)} is not valid: expected ${expected}`);

export const every =
  (...checks: Check[]): Check =>
  (value) =>
    checks.flatMap((check) => check(value));

/** Whether the configuration gives the attribute or block itself; a value not known yet does not count. */
export function isGiven(config: ObjectValue, name: string): boolean {
  const value = config[name];
  if (value === null || value === undefined || value === UNKNOWN) return false;
  return Array.isArray(value) ? value.length > 0 : true;
}

/** One error per name of `others` that is given together with `name`. */
export function conflicts(config: ObjectValue, name: string, others: readonly string[]): Finding[] {
  if (!isGiven(config, name)) return [];
  return others
    .filter((other) => isGiven(config, other))
    .map((other) =>
      error(
        `"${name}" conflicts with "${other}": give only one of them`,
        [name],
        "Conflicting configuration arguments",
      ),
    );
}

/** One error per block of the list `name` whose `key` an earlier one has. */
export function duplicateKeys(config: ObjectValue, name: string, what: string, key = "key"): Finding[] {
  const seen = new Set<string>();
  const items = config[name];
  return (Array.isArray(items) ? items : []).flatMap((item, index) => {
    const text = isObject(item) ? item[key] : null;
    if (typeof text !== "string") return [];
    if (seen.has(text)) return [error(`duplicate ${what} ${JSON.stringify(text)}`, [name, index, key])];
    seen.add(text);
    return [];
  });
}

/** The single block of a kind that may come once; undefined when absent or not known yet. */
export const onlyItem = (config: ObjectValue, name: string): ObjectValue | undefined =>
  knownItems(config[name])[0];
