// Terraform's value and type model ("cty"), as far as the schemas here need it. Objects and maps share one
// representation: an object without a prototype, so that a key such as `__proto__` is an ordinary key.
import { ProviderError } from "./errors.ts";

/** A value Terraform will only know later, while applying. */
export const UNKNOWN: unique symbol = Symbol("unknown");

/** A number outside +-(2^53 - 1), as decimal text: kept whole, so that a check can refuse it by its real value. */
export class ExactNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

export interface ObjectValue {
  [name: string]: Value;
}
export type Value = null | typeof UNKNOWN | string | number | boolean | ExactNumber | Value[] | ObjectValue;

/** As Terraform writes types in JSON, `"string"` or `["map","string"]`. */
export type Type = "string" | "number" | "bool" | ["list" | "set" | "map", Type] | ["object", ObjectType];
export interface ObjectType {
  [name: string]: Type;
}

export function objectValue(entries: Iterable<readonly [string, Value]> = []): ObjectValue {
  const out: ObjectValue = Object.create(null);
  for (const [name, value] of entries) out[name] = value;
  return out;
}

export function isObject(value: Value): value is ObjectValue {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof ExactNumber)
  );
}

/** The blocks of one kind in a configuration; none when it is null or not known yet. */
export function knownItems(value: Value | undefined): ObjectValue[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

/** The text of an attribute, or `fallback` while it is null or unknown. */
export function textOf(value: Value | undefined, fallback = ""): string {
  return typeof value === "string" ? value : fallback;
}

export function isWhollyKnown(value: Value): boolean {
  if (value === UNKNOWN) return false;
  if (Array.isArray(value)) return value.every(isWhollyKnown);
  return isObject(value) ? Object.values(value).every(isWhollyKnown) : true;
}

/** Null, "", 0, false and empty collections: Terraform's older SDK, which wrote many states, can't tell them apart. */
function isZero(value: Value): boolean {
  if (value === null || value === "" || value === 0 || value === false) return true;
  if (Array.isArray(value)) return value.length === 0;
  return isObject(value) && Object.keys(value).length === 0;
}

/** Whether two values mean the same to the platform: equal, or both zero. Unknown equals nothing. */
export function sameMeaning(a: Value, b: Value): boolean {
  if (a === UNKNOWN || b === UNKNOWN) return false;
  if (isZero(a) || isZero(b)) return isZero(a) && isZero(b);
  if (a instanceof ExactNumber || b instanceof ExactNumber)
    return a instanceof ExactNumber && b instanceof ExactNumber && a.text === b.text;
  if (Array.isArray(a) || Array.isArray(b))
    return (
      Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((x, i) => sameMeaning(x, b[i]))
    );
  if (isObject(a) && isObject(b)) {
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...names].every((name) => sameMeaning(a[name] ?? null, b[name] ?? null));
  }
  return a === b;
}

/**
 * Reads decoded JSON (of a state file, say) as a value of `type`. Attributes the type lacks are dropped, missing
 * ones become null, a missing list or set of objects (Terraform's blocks) becomes empty.
 *
 * @throws {ProviderError} ERR_PROVIDER_VALUE naming the path of what does not fit
 */
export function valueFromJson(json: unknown, type: Type, path = "value"): Value {
  if (json === null || json === undefined) return null;
  const misfit = () => new ProviderError("ERR_PROVIDER_VALUE", `${path} is not a ${typeName(type)}`);
  if (type === "string") {
    if (typeof json === "string") return json;
    if (typeof json === "number" || typeof json === "boolean") return String(json);
    throw misfit();
  }
  if (type === "bool") {
    if (typeof json === "boolean") return json;
    if (json === "true" || json === "false") return json === "true";
    throw misfit();
  }
  if (type === "number") {
    const number = typeof json === "string" && json.trim() !== "" ? Number(json) : json;
    if (typeof number === "number" && Number.isFinite(number)) return number;
    throw misfit();
  }
  if (type[0] === "list" || type[0] === "set") {
    if (!Array.isArray(json)) throw misfit();
    const element = type[1];
    return json.map((item, i) => valueFromJson(item, element, `${path}[${i}]`));
  }
  if (typeof json !== "object" || Array.isArray(json)) throw misfit();
  const fields = new Map<string, unknown>(Object.entries(json));
  if (type[0] === "map") {
    const element = type[1];
    return objectValue(
      [...fields].map(([key, item]) => [key, valueFromJson(item, element, `${path}.${key}`)]),
    );
  }
  return objectValue(
    Object.entries(type[1]).map(([name, field]) => {
      const missing = fields.get(name) === undefined || fields.get(name) === null;
      if (missing && isBlockType(field)) return [name, []];
      return [name, valueFromJson(fields.get(name), field, `${path}.${name}`)];
    }),
  );
}

function isBlockType(type: Type): boolean {
  return Array.isArray(type) && (type[0] === "list" || type[0] === "set") && type[1][0] === "object";
}

function typeName(type: Type): string {
  return typeof type === "string" ? type : type[0];
}
