// Changes valid inputs into almost valid ones: bytes, text or the values of a JSON document.
import type { Random } from "./random.ts";

export type Format = "bytes" | "text" | "json";

const INTERESTING_BYTES = [0, 1, 2, 0x0a, 0x0d, 0x1b, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xfe, 0xff];
const INTERESTING_NUMBERS = [
  0,
  -0,
  1,
  -1,
  0.5,
  127,
  128,
  255,
  256,
  32_767,
  65_535,
  65_536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  Number.MAX_SAFE_INTEGER,
  Number.MAX_SAFE_INTEGER + 1,
  -Number.MAX_SAFE_INTEGER,
  1e21,
  1e308,
  5e-324,
];
const INTERESTING_TEXTS = [
  "",
  " ",
  "\0",
  "\n",
  "\r\n",
  "\x1b[31m",
  "\x1b]0;x\x07",
  "\x9b2J",
  "\u202e",
  "\u2028",
  "\ufeff",
  "\ud800",
  "\udc00x",
  "é",
  "😀",
  "../",
  "/",
  "\\",
  "%",
  "%00",
  "$\x7bx}",
  "'",
  '"',
  "`",
  "--",
  "*",
  "__proto__",
  "constructor",
  "toString",
  "hasOwnProperty",
  "NaN",
  "1e999",
  "-1",
  "0x10",
  "9007199254740993",
  "true",
  "null",
  "a".repeat(65),
  "a".repeat(1_025),
];
/** Varints (RFC 9000 section 16) and plain integers at their edges. */
const INTERESTING_FIELDS = [
  [0x3f],
  [0x40, 0x40],
  [0x7f, 0xff],
  [0x80, 0x00, 0x40, 0x00],
  [0xbf, 0xff, 0xff, 0xff],
  [0xc0, 0, 0, 0, 0x40, 0, 0, 0],
  [0xc0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xc0, 0x20, 0, 0, 0, 0, 0, 0],
  [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xff, 0xff],
  [0xff, 0xff, 0xff, 0xff],
  [0x7f, 0xff, 0xff, 0xff],
  [0x80, 0, 0, 0],
  [0, 0, 0, 0],
  [0, 0x10, 0, 0x01],
].map((bytes) => Uint8Array.from(bytes));

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export interface MutateOptions {
  format: Format;
  maxBytes: number;
  dictionary: readonly Uint8Array[];
}

/** @param other another input, for splices @returns a changed copy of `input`, at most `maxBytes` long */
export function mutate(
  input: Uint8Array,
  other: Uint8Array,
  random: Random,
  { format, maxBytes, dictionary }: MutateOptions,
): Uint8Array {
  let out = input;
  const rounds = 1 + random.below(random.chance(0.2) ? 8 : 3);
  if (format === "json" && random.chance(0.8)) out = mutateJson(out, random, rounds) ?? out;
  else if (format === "text" && random.chance(0.5)) out = mutateText(out, random, rounds);
  else for (let i = 0; i < rounds; i++) out = mutateBytes(out, other, random, dictionary);
  return out.length > maxBytes ? out.slice(0, maxBytes) : out;
}

function splice(input: Uint8Array, from: number, to: number, insert: Uint8Array): Uint8Array {
  const out = new Uint8Array(input.length - (to - from) + insert.length);
  out.set(input.subarray(0, from));
  out.set(insert, from);
  out.set(input.subarray(to), from + insert.length);
  return out;
}

const NONE = new Uint8Array();

function mutateBytes(
  input: Uint8Array,
  other: Uint8Array,
  random: Random,
  dictionary: readonly Uint8Array[],
): Uint8Array {
  const at = random.below(input.length + 1);
  const end = Math.min(input.length, at + 1 + random.below(random.chance(0.2) ? input.length : 8));
  switch (random.below(13)) {
    case 0:
    case 1: {
      const out = input.slice();
      if (at < out.length) out[at] ^= 1 << random.below(8);
      return out;
    }
    case 2:
    case 3: {
      const out = input.slice();
      if (at < out.length) out[at] = random.pick(INTERESTING_BYTES);
      return out;
    }
    case 4: {
      const out = input.slice();
      if (at < out.length) out[at] += random.pick([-2, -1, 1, 2, 16, -16]);
      return out;
    }
    case 5:
      return splice(input, at, at, random.bytes(1 + random.below(8)));
    case 6:
      return splice(input, at, end, NONE);
    case 7:
      return splice(input, at, at, input.slice(at, end));
    case 8: {
      // Front of one, back of another.
      const from = random.below(other.length + 1);
      return splice(input, at, input.length, other.subarray(from));
    }
    case 9:
      return input.slice(0, at);
    case 10: {
      // A field at its edge, put over what stands there.
      const field = random.pick(INTERESTING_FIELDS);
      return splice(input, at, random.chance(0.7) ? Math.min(input.length, at + field.length) : at, field);
    }
    case 11:
      return shiftLength(input, random);
    default: {
      if (dictionary.length === 0) return splice(input, at, at, other.subarray(0, 16));
      const word = random.pick(dictionary);
      return splice(input, at, random.chance(0.5) ? Math.min(input.length, at + word.length) : at, word);
    }
  }
}

/** Finds a field that may be a length (it says how much is left, about) and moves it, or what it measures. */
function shiftLength(input: Uint8Array, random: Random): Uint8Array {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  const found: [at: number, bytes: number][] = [];
  const limit = Math.min(input.length, 256);
  for (let at = 0; at + 2 <= limit && found.length < 16; at++) {
    const left16 = input.length - at - 2;
    if (view.getUint16(at) <= left16 && view.getUint16(at) > 0) found.push([at, 2]);
    if (at + 4 <= limit && view.getUint32(at) <= left16 && view.getUint32(at) > 0) found.push([at, 4]);
  }
  const out = input.slice();
  if (found.length === 0) return out;
  const [at, bytes] = random.pick(found);
  const change = random.pick([-1, 1, -4, 4, 256, 65_536]);
  const outView = new DataView(out.buffer);
  if (bytes === 2) outView.setUint16(at, outView.getUint16(at) + change);
  else outView.setUint32(at, outView.getUint32(at) + change);
  return out;
}

function mutateText(input: Uint8Array, random: Random, rounds: number): Uint8Array {
  let text = decoder.decode(input);
  for (let i = 0; i < rounds; i++) text = changedText(text, random);
  return encoder.encode(text);
}

function changedText(text: string, random: Random): string {
  const at = random.below(text.length + 1);
  const end = Math.min(text.length, at + 1 + random.below(8));
  switch (random.below(7)) {
    case 0:
      return text.slice(0, at) + random.pick(INTERESTING_TEXTS) + text.slice(at);
    case 1:
      return text.slice(0, at) + text.slice(end);
    case 2:
      return text.slice(0, end) + text.slice(at);
    case 3:
      return text.slice(0, at) + String(random.pick(INTERESTING_NUMBERS)) + text.slice(end);
    case 4:
      return text.slice(0, at) + String.fromCharCode(random.below(128)) + text.slice(end);
    case 5:
      return text.slice(0, at) + text.slice(at, end).repeat(2 + random.below(40)) + text.slice(end);
    default:
      return random.chance(0.1) ? random.pick(INTERESTING_TEXTS) : text.toUpperCase();
  }
}

interface Slot {
  holder: Record<string | number, unknown>;
  key: string | number;
}

/** @returns undefined when the input is no JSON */
function mutateJson(input: Uint8Array, random: Random, rounds: number): Uint8Array | undefined {
  let root: unknown;
  try {
    root = JSON.parse(decoder.decode(input));
  } catch {
    return undefined;
  }
  const top = { root };
  try {
    for (let i = 0; i < rounds; i++) {
      const slots: Slot[] = [];
      collect(top, slots, 0);
      if (slots.length > 0) changeSlot(random.pick(slots), slots, random);
    }
    return encoder.encode(JSON.stringify(top.root) ?? "null");
  } catch {
    return undefined; // nested deeper than it can be copied or written
  }
}

function collect(holder: object, slots: Slot[], depth: number): void {
  for (const key of Object.keys(holder)) {
    if (slots.length >= 512) return;
    const open = holder as Record<string, unknown>;
    slots.push({ holder: open, key });
    const value = open[key];
    if (depth < 12 && typeof value === "object" && value !== null) collect(value, slots, depth + 1);
  }
}

/** Also a member called __proto__, which an assignment would not make. */
function define(holder: object, key: string | number, value: unknown): void {
  if (Array.isArray(holder) && key === "length") return;
  Object.defineProperty(holder, key, { value, enumerable: true, configurable: true, writable: true });
}

function changeSlot({ holder, key }: Slot, slots: readonly Slot[], random: Random): void {
  const value = holder[key];
  const put = (next: unknown): void => define(holder, key, next);
  switch (random.below(10)) {
    case 0:
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete holder[key];
      return;
    case 1: {
      const from = random.pick(slots);
      return put(structuredClone(from.holder[from.key]));
    }
    case 2:
      return put(random.pick([null, true, false, [], {}, "", 0, [null], [[]], { "": null }]));
    case 3:
      return put(random.pick(INTERESTING_NUMBERS));
    case 4:
      return put(random.pick(INTERESTING_TEXTS));
    case 5: {
      const name = random.pick(["__proto__", "constructor", "x", "", "type", "\0", "a".repeat(300)]);
      if (typeof value !== "object" || value === null) return put({ [name]: value });
      return define(value, name, random.pick(INTERESTING_NUMBERS));
    }
    case 6: {
      let deep: unknown = value;
      for (let i = random.below(random.chance(0.02) ? 4_000 : 12); i >= 0; i--)
        deep = i % 2 ? [deep] : { a: deep };
      return put(deep);
    }
    case 7:
      if (Array.isArray(value)) {
        const last: unknown = value.at(-1);
        for (let i = random.below(64); i > 0; i--) value.push(last ?? i);
      } else put([value, value]);
      return;
    default:
      if (typeof value === "string") return put(changedText(value, random));
      if (typeof value === "number")
        return put(value + random.pick([-1, 1, 0.5, -value, value, 1_000, -1_000, 2 ** 32]));
      return put(typeof value === "boolean" ? !value : String(value));
  }
}
