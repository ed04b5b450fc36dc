// What a JSON value must look like, checked by hand: as strict as a schema library, in a fraction of its code, which every
// `ssh` would load. Unknown members are dropped, so that versions can mix. Holds for values that JSON.parse made.
import { fromBase64 } from "./bytes.ts";
import { WireError } from "./errors.ts";

/** `T`: what comes out. `I`: what may go in, where defaults make that differ. */
export interface Shape<T, I = T> {
  /** @throws {WireError} ERR_BAD_VALUE, naming the member */
  parse(value: unknown, at?: string): T;
  readonly isOptional?: true;
  /** Never there: for the types alone. */
  readonly input?: I;
}

type Infer<S> = S extends Shape<infer T, infer _> ? T : never;
type Input<S> = S extends Shape<infer _, infer I> ? I : never;
type Simple<T> = { [K in keyof T]: T[K] } & {};
type AnyShape = Shape<unknown, unknown>;
type Members = Record<string, AnyShape>;
type OptionalKeys<M extends Members> = {
  [K in keyof M]: undefined extends Infer<M[K]> ? K : never;
}[keyof M];
type OptionalInputs<M extends Members> = {
  [K in keyof M]: undefined extends Input<M[K]> ? K : never;
}[keyof M];
type ObjectOf<M extends Members> = Simple<
  { [K in Exclude<keyof M, OptionalKeys<M>>]: Infer<M[K]> } & { [K in OptionalKeys<M>]?: Infer<M[K]> }
>;
type InputOf<M extends Members> = Simple<
  { [K in Exclude<keyof M, OptionalInputs<M>>]: Input<M[K]> } & { [K in OptionalInputs<M>]?: Input<M[K]> }
>;
export type infer<S> = Infer<S>;
export type input<S> = Input<S>;

const bad = (at: string, what: string): WireError =>
  new WireError("ERR_BAD_VALUE", at === "" ? `is ${what}` : `${at} is ${what}`);

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export function refined<T, I>(
  shape: Shape<T, I>,
  isGood: (value: T) => boolean,
  otherwise: string,
): Shape<T, I> {
  return {
    ...shape,
    parse(value, at = "") {
      const parsed = shape.parse(value, at);
      if (!isGood(parsed)) throw bad(at, otherwise);
      return parsed;
    },
  };
}

/** `min`, `max`: UTF-16 units. */
export function text({
  min = 0,
  max = Number.POSITIVE_INFINITY,
  pattern,
}: {
  min?: number;
  max?: number;
  pattern?: RegExp;
} = {}): Shape<string> {
  return {
    parse(value, at = "") {
      if (typeof value !== "string") throw bad(at, "no text");
      if (value.length < min || value.length > max) throw bad(at, `a text of ${value.length}`);
      if (pattern && !pattern.test(value)) throw bad(at, "a text of another form");
      return value;
    },
  };
}

/** A finite number. */
export const number: Shape<number> = {
  parse(value, at = "") {
    if (typeof value !== "number" || !Number.isFinite(value)) throw bad(at, "no number");
    return value;
  },
};

/** An integer that a double holds exactly. */
export function integer({
  min = Number.MIN_SAFE_INTEGER,
  max = Number.MAX_SAFE_INTEGER,
}: {
  min?: number;
  max?: number;
} = {}): Shape<number> {
  return {
    parse(value, at = "") {
      if (!Number.isSafeInteger(value)) throw bad(at, "no integer");
      if ((value as number) < min || (value as number) > max) throw bad(at, "out of range");
      return (value as number) + 0; // JSON has a -0, which is another value to who compares
    },
  };
}

export const boolean: Shape<boolean> = {
  parse(value, at = "") {
    if (typeof value !== "boolean") throw bad(at, "neither true nor false");
    return value;
  },
};

export function oneOf<const T extends string | number>(...values: readonly T[]): Shape<T> {
  return {
    parse(value, at = "") {
      if (!values.includes(value as T)) throw bad(at, `none of ${values.join(", ")}`);
      return value as T;
    },
  };
}

export function list<T, I>(
  item: Shape<T, I>,
  { min = 0, max }: { min?: number; max: number },
): Shape<T[], I[]> {
  return {
    parse(value, at = "") {
      if (!Array.isArray(value)) throw bad(at, "no list");
      if (value.length < min || value.length > max) throw bad(at, `a list of ${value.length}`);
      return value.map((one, i) => item.parse(one, `${at}[${i}]`));
    },
  };
}

export function optional<T, I>(shape: Shape<T, I>): Shape<T | undefined, I | undefined> {
  return {
    isOptional: true,
    parse: (value, at) => (value === undefined ? undefined : shape.parse(value, at)),
  };
}

export function defaulted<T, I>(shape: Shape<T, I>, fallback: () => T): Shape<T, I | undefined> {
  return { parse: (value, at) => (value === undefined ? fallback() : shape.parse(value, at)) };
}

/** Of the members named, without others. */
export function object<M extends Members>(members: M): Shape<ObjectOf<M>, InputOf<M>> {
  const all = Object.entries(members);
  return {
    parse(value, at = "") {
      if (!isObject(value)) throw bad(at, "no object");
      const out: Record<string, unknown> = {};
      for (const [name, shape] of all) {
        const parsed = shape.parse(value[name], at === "" ? name : `${at}.${name}`);
        if (parsed !== undefined || !shape.isOptional) out[name] = parsed;
      }
      return out as ObjectOf<M>;
    },
  };
}

/** An object that has an object by that name, and whatever else. */
export function looseObjectWith<K extends string>(
  name: K,
): Shape<Record<K, Record<string, unknown>> & Record<string, unknown>> {
  return {
    parse(value, at = "") {
      if (!isObject(value)) throw bad(at, "no object");
      if (!isObject(value[name])) throw bad(at === "" ? name : `${at}.${name}`, "no object");
      return value as Record<K, Record<string, unknown>> & Record<string, unknown>;
    },
  };
}

/** One of several objects, told apart by the text at `tag`. */
export function variants<K extends string, M extends Record<string, AnyShape>>(
  tag: K,
  shapes: M,
): Shape<
  { [N in keyof M]: Simple<Record<K, N> & Infer<M[N]>> }[keyof M],
  { [N in keyof M]: Simple<Record<K, N> & Input<M[N]>> }[keyof M]
> & { has(value: string): boolean } {
  type Out = { [N in keyof M]: Simple<Record<K, N> & Infer<M[N]>> }[keyof M];
  const has = (value: string): boolean => Object.hasOwn(shapes, value);
  return {
    has,
    parse(value, at = "") {
      if (!isObject(value)) throw bad(at, "no object");
      const name = value[tag];
      if (typeof name !== "string" || !has(name)) throw bad(at === "" ? tag : `${at}.${tag}`, "unknown");
      return { [tag]: name, ...(shapes[name].parse(value, at) as object) } as Out;
    },
  };
}

/** RFC 9562, versions 1 to 8, the nil and the max one. */
export const uuid: Shape<string> = text({
  pattern:
    /^([0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|0{8}-0{4}-0{4}-0{4}-0{12}|f{8}-f{4}-f{4}-f{4}-f{12})$/i,
});

/** Standard base64 with padding, of any length up to `max` characters. */
export const base64 = (max: number): Shape<string> =>
  text({ max, pattern: /^([0-9A-Za-z+/]{4})*([0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?$/ });

/** Exactly so many bytes in canonical base64. */
export function base64Bytes(bytes: number, otherwise: string): Shape<string> {
  return refined(text({ max: 4 * Math.ceil(bytes / 3) }), (value) => isBase64Of(value, bytes), otherwise);
}

export function isBase64Of(value: string, bytes: number): boolean {
  try {
    return value.length === 4 * Math.ceil(bytes / 3) && fromBase64(value).length === bytes;
  } catch {
    return false;
  }
}
