// The parser of regex.ts: RE2's syntax into a tree. What RE2 lacks (lookaround, back references, possessive and
// atomic groups) is refused with a message that says so.
import { ProviderError } from "./errors.ts";

export interface CodePointSet {
  has(point: number): boolean;
}

export type RegexNode =
  | { kind: "empty" }
  | { kind: "char"; set: CodePointSet }
  | { kind: "sequence" | "either"; items: RegexNode[] }
  | { kind: "repeat"; item: RegexNode; min: number; max: number }
  | {
      kind: "assert";
      what: "text start" | "text end" | "line start" | "line end" | "word boundary" | "no word boundary";
    };

/** Most one repetition may count to, as in RE2. */
const MAX_REPEAT = 1000;
const MAX_NESTING = 200;
const MAX_PATTERN_LENGTH = 10_000;

const fail = (message: string) => new ProviderError("ERR_PROVIDER_REGEX", message);

type Range = readonly [low: number, high: number];
interface Flags {
  fold: boolean;
  multiline: boolean;
  dotAll: boolean;
}

const DIGIT: Range[] = [[0x30, 0x39]];
const WORD: Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const SPACE: Range[] = [
  [0x09, 0x0a],
  [0x0c, 0x0d],
  [0x20, 0x20],
];
const PERL_CLASSES: Record<string, Range[]> = { d: DIGIT, w: WORD, s: SPACE };
const CONTROL: Record<string, number> = { a: 7, f: 12, t: 9, n: 10, r: 13, v: 11 };
const POSIX: Record<string, Range[]> = {
  alnum: [
    [0x30, 0x39],
    [0x41, 0x5a],
    [0x61, 0x7a],
  ],
  alpha: [
    [0x41, 0x5a],
    [0x61, 0x7a],
  ],
  ascii: [[0, 0x7f]],
  blank: [
    [9, 9],
    [0x20, 0x20],
  ],
  cntrl: [
    [0, 0x1f],
    [0x7f, 0x7f],
  ],
  digit: DIGIT,
  graph: [[0x21, 0x7e]],
  lower: [[0x61, 0x7a]],
  print: [[0x20, 0x7e]],
  punct: [
    [0x21, 0x2f],
    [0x3a, 0x40],
    [0x5b, 0x60],
    [0x7b, 0x7e],
  ],
  space: [
    [9, 13],
    [0x20, 0x20],
  ],
  upper: [[0x41, 0x5a]],
  word: WORD,
  xdigit: [
    [0x30, 0x39],
    [0x41, 0x46],
    [0x61, 0x66],
  ],
};

/** @throws {ProviderError} ERR_PROVIDER_REGEX */
export function parseRegex(pattern: string): RegexNode {
  if (pattern.length > MAX_PATTERN_LENGTH)
    throw fail(`the pattern is longer than ${MAX_PATTERN_LENGTH} characters`);
  const parser = new Parser(pattern);
  const node = parser.alternatives({ fold: false, multiline: false, dotAll: false }, 0);
  if (parser.rest !== "") throw fail("a closing parenthesis has no opening one");
  return node;
}

class Parser {
  #pattern: string;
  #offset = 0;
  #names = new Set<string>();
  constructor(pattern: string) {
    this.#pattern = pattern;
  }

  get rest(): string {
    return this.#pattern.slice(this.#offset);
  }

  /** Everything up to a closing parenthesis or the end. `flags` is the group's own: (?i) changes what follows. */
  alternatives(flags: Flags, depth: number): RegexNode {
    if (depth > MAX_NESTING) throw fail(`more than ${MAX_NESTING} nested groups`);
    const branches: RegexNode[][] = [[]];
    while (this.#offset < this.#pattern.length && this.#pattern[this.#offset] !== ")") {
      if (this.#eat("|")) {
        branches.push([]);
        continue;
      }
      const branch = branches[branches.length - 1];
      const repeat = this.#repeat();
      if (repeat) {
        const item = branch.pop();
        if (!item) throw fail(`${JSON.stringify(repeat.text)} has nothing to repeat`);
        branch.push({ kind: "repeat", item, min: repeat.min, max: repeat.max });
        const second = this.#repeat();
        if (second)
          throw fail(`${JSON.stringify(repeat.text + second.text)} repeats a repetition; use a group`);
      } else branch.push(...this.#atom(flags, depth));
    }
    const items = branches.map(
      (items): RegexNode => (items.length === 1 ? items[0] : { kind: "sequence", items }),
    );
    return items.length === 1 ? items[0] : { kind: "either", items };
  }

  #repeat(): { min: number; max: number; text: string } | undefined {
    const found = /^(?:([*+?])|\{(\d+)(?:(,)(\d*))?\})\??/.exec(this.rest);
    if (!found) return undefined;
    this.#offset += found[0].length;
    const [text, sign, low, comma, high] = found;
    if (sign) return { min: sign === "+" ? 1 : 0, max: sign === "?" ? 1 : Number.POSITIVE_INFINITY, text };
    const min = Number(low);
    const max = comma === undefined ? min : high === "" ? Number.POSITIVE_INFINITY : Number(high);
    if (min > MAX_REPEAT || (Number.isFinite(max) && max > MAX_REPEAT) || min > max)
      throw fail(`${JSON.stringify(text)} is not a repeat count between 0 and ${MAX_REPEAT}`);
    return { min, max, text };
  }

  #atom(flags: Flags, depth: number): RegexNode[] {
    const char = this.#next();
    switch (char) {
      case "(":
        return this.#group(flags, depth);
      case "[":
        return [this.#class(flags)];
      case ".":
        return [{ kind: "char", set: flags.dotAll ? negated(setOf([])) : negated(setOf([[0x0a, 0x0a]])) }];
      case "^":
        return [{ kind: "assert", what: flags.multiline ? "line start" : "text start" }];
      case "$":
        return [{ kind: "assert", what: flags.multiline ? "line end" : "text end" }];
      case "\\":
        return this.#escape(flags);
      default:
        return [literal(char.codePointAt(0)!, flags)];
    }
  }

  #group(flags: Flags, depth: number): RegexNode[] {
    let inner = { ...flags };
    if (this.#eat("?")) {
      const name = /^P?<([^>]*)>/.exec(this.rest);
      const options = /^([imsU]*)(-[imsU]+)?([:)])/.exec(this.rest);
      if (name && !/^(=|!)/.test(this.rest.replace(/^P?</, ""))) {
        this.#offset += name[0].length;
        if (!/^\w+$/.test(name[1])) throw fail(`${JSON.stringify(name[1])} is not a group name`);
        if (this.#names.has(name[1])) throw fail(`two groups are called ${JSON.stringify(name[1])}`);
        this.#names.add(name[1]);
      } else if (options && options[0] !== ")") {
        this.#offset += options[0].length;
        inner = withOptions(flags, options[1], options[2] ?? "");
        if (options[3] === ")") {
          Object.assign(flags, inner);
          return [];
        }
      } else if (/^(<?[=!]|>|\()/.test(this.rest))
        throw fail(
          "lookaround and atomic groups (?=…) (?!…) (?<=…) (?<!…) (?>…) are not part of RE2's syntax",
        );
      else throw fail("a group begins with (? but with nothing RE2 knows behind it");
    }
    const node = this.alternatives(inner, depth + 1);
    if (!this.#eat(")")) throw fail("a group is not closed: a ) is missing");
    return [node];
  }

  #escape(flags: Flags): RegexNode[] {
    const char = this.#next("a backslash at the end escapes nothing");
    switch (char) {
      case "A":
        return [{ kind: "assert", what: "text start" }];
      case "z":
        return [{ kind: "assert", what: "text end" }];
      case "b":
        return [{ kind: "assert", what: "word boundary" }];
      case "B":
        return [{ kind: "assert", what: "no word boundary" }];
      case "Q": {
        const end = this.rest.indexOf("\\E");
        const text = end < 0 ? this.rest : this.rest.slice(0, end);
        this.#offset += text.length + (end < 0 ? 0 : 2);
        return Array.from(text, (quoted) => literal(quoted.codePointAt(0)!, flags));
      }
      default: {
        const set = this.#classEscape(char);
        if (set) return [{ kind: "char", set: flags.fold ? folded(set) : set }];
        return [literal(this.#charEscape(char), flags)];
      }
    }
  }

  /** \d \w \s \pN \p{Name} and their negations; undefined for every other escape. */
  #classEscape(char: string): CodePointSet | undefined {
    const perl = Object.hasOwn(PERL_CLASSES, char.toLowerCase()) && PERL_CLASSES[char.toLowerCase()];
    if (perl) return char === char.toLowerCase() ? setOf(perl) : negated(setOf(perl));
    if (char !== "p" && char !== "P") return undefined;
    const named = /^\{(\^?)([A-Za-z_]+)\}|^([A-Za-z])/.exec(this.rest);
    if (!named) throw fail(`\\${char} must be followed by the name of a Unicode class`);
    this.#offset += named[0].length;
    const set = unicodeClass(named[2] ?? named[3]);
    return (char === "P") !== (named[1] === "^") ? negated(set) : set;
  }

  /** An escape that stands for one character. @returns its code point */
  #charEscape(char: string): number {
    if (Object.hasOwn(CONTROL, char)) return CONTROL[char];
    if (char === "x") {
      const hex = /^(?:([0-9a-fA-F]{2})|\{([0-9a-fA-F]{1,8})\})/.exec(this.rest);
      const point = Number.parseInt(hex?.[1] ?? hex?.[2] ?? "", 16);
      if (!hex || point > 0x10ffff) throw fail("\\x must be followed by two hexadecimal digits or {digits}");
      this.#offset += hex[0].length;
      return point;
    }
    if (/[0-7]/.test(char)) {
      const more = /^[0-7]{0,2}/.exec(this.rest)![0];
      if (char !== "0" && more === "") throw fail(`\\${char}: back references are not part of RE2's syntax`);
      this.#offset += more.length;
      return Number.parseInt(char + more, 8);
    }
    if (/^[\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]$/.test(char)) return char.charCodeAt(0);
    throw fail(`\\${char} is not an escape RE2 knows`);
  }

  #class(flags: Flags): RegexNode {
    const isNegated = this.#eat("^");
    const ranges: Range[] = [];
    const sets: CodePointSet[] = [];
    for (let first = true; first || !this.#eat("]"); first = false) {
      const posix = /^\[:(\^?)(\w+):\]/.exec(this.rest);
      if (posix) {
        if (!Object.hasOwn(POSIX, posix[2])) throw fail(`[:${posix[2]}:] is not a class RE2 knows`);
        this.#offset += posix[0].length;
        const set = setOf(POSIX[posix[2]]);
        sets.push(posix[1] ? negated(set) : set);
        continue;
      }
      const low = this.#classChar();
      if (typeof low !== "number") sets.push(low);
      else if (/^-[^\]]/u.test(this.rest)) {
        this.#offset++;
        const high = this.#classChar();
        if (typeof high !== "number" || high < low) throw fail("a range in [ ] ends before it begins");
        ranges.push([low, high]);
      } else ranges.push([low, low]);
    }
    const plain = setOf(ranges);
    const union: CodePointSet = { has: (point) => plain.has(point) || sets.some((set) => set.has(point)) };
    const set = flags.fold ? folded(union) : union;
    return { kind: "char", set: isNegated ? negated(set) : set };
  }

  #classChar(): number | CodePointSet {
    const char = this.#next("a character class is not closed: a ] is missing");
    if (char !== "\\") return char.codePointAt(0)!;
    const escaped = this.#next("a backslash at the end escapes nothing");
    return this.#classEscape(escaped) ?? this.#charEscape(escaped);
  }

  #next(otherwise = "the pattern is cut short"): string {
    const point = this.#pattern.codePointAt(this.#offset);
    if (point === undefined) throw fail(otherwise);
    const char = String.fromCodePoint(point);
    this.#offset += char.length;
    return char;
  }

  #eat(char: string): boolean {
    if (this.#pattern[this.#offset] !== char) return false;
    this.#offset++;
    return true;
  }
}

function withOptions(flags: Flags, on: string, off: string): Flags {
  const set = (name: string, before: boolean) => (on.includes(name) || before) && !off.includes(name);
  // U swaps greedy and lazy, which can't change whether a pattern matches.
  return { fold: set("i", flags.fold), multiline: set("m", flags.multiline), dotAll: set("s", flags.dotAll) };
}

function literal(point: number, flags: Flags): RegexNode {
  const set = setOf([[point, point]]);
  return { kind: "char", set: flags.fold ? folded(set) : set };
}

const setOf = (ranges: readonly Range[]): CodePointSet => ({
  has: (point) => ranges.some(([low, high]) => point >= low && point <= high),
});
const negated = (set: CodePointSet): CodePointSet => ({ has: (point) => !set.has(point) });

/** The set with every character that differs from one of its own only in case. */
const folded = (set: CodePointSet): CodePointSet => ({
  has: (point) => {
    const char = String.fromCodePoint(point);
    const upper = char.toUpperCase();
    return [char, char.toLowerCase(), upper, upper.toLowerCase()].some((variant) => {
      const folded = variant.codePointAt(0)!;
      return String.fromCodePoint(folded) === variant && set.has(folded);
    });
  },
});

function unicodeClass(name: string): CodePointSet {
  if (name === "Any") return negated(setOf([]));
  try {
    const regex = new RegExp(`^\\p{${/^[A-Z][a-z]?$/.test(name) ? name : `Script=${name}`}}$`, "u");
    return { has: (point) => regex.test(String.fromCodePoint(point)) };
  } catch {
    throw fail(`\\p{${name}} is not a Unicode class`);
  }
}
