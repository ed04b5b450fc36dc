// Just enough HCL to see which blocks a template declares before Terraform has run: variable blocks (Terraform
// prints no types, and prints nothing at all while a required value is missing) and whether `terraform init` has
// anything to do. It is tolerant: what it can't read it skips, and Terraform itself judges the template.

export interface HclBlock {
  type: string;
  labels: string[];
  /** Attribute name -> its expression as written, trimmed. */
  attributes: Map<string, string>;
  blocks: HclBlock[];
}

const MAX_DEPTH = 64;
const IDENT = /[\p{L}_][\p{L}\p{N}_-]*/uy;
const HEREDOC = /<<-?([\p{L}_][\p{L}\p{N}_-]*)[^\n]*\n/uy;

/** @returns the top-level blocks of one `.tf` file, in order; never throws */
export function scanBlocks(source: string): HclBlock[] {
  return new Scanner(source).body(0).blocks;
}

/** @returns the value of a literal expression (string without interpolation, number, bool, null) or undefined */
export function literalValue(expression: string): string | number | boolean | null | undefined {
  if (expression === "true") return true;
  if (expression === "false") return false;
  if (expression === "null") return null;
  if (/^-?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(expression)) return Number(expression);
  if (/^"(?:[^"\\\n]|\\.)*"$/.test(expression)) return unquote(expression);
  const heredoc = /^<<(-?)([^\n]+)\n([\s\S]*?)\n?[ \t]*\2[ \t]*$/.exec(expression);
  if (!heredoc || /[$%]\{/.test(heredoc[3]!)) return undefined;
  const lines = heredoc[3]!.split("\n");
  const indents = lines.filter((line) => line.trim()).map((line) => /^[ \t]*/.exec(line)![0].length);
  const cut = heredoc[1] === "-" && indents.length > 0 ? Math.min(...indents) : 0;
  return lines.map((line) => `${line.slice(cut)}\n`).join("");
}

function unquote(quoted: string): string | undefined {
  const inner = quoted.slice(1, -1);
  if (/(?<![$])\$\{|(?<!%)%\{/.test(inner)) return undefined;
  const escapes: Record<string, string> = { n: "\n", r: "\r", t: "\t", '"': '"', "\\": "\\" };
  return inner
    .replace(/\$\$\{/g, "${")
    .replace(/%%\{/g, "%{")
    .replace(
      /\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))/g,
      (whole, u4?: string, u8?: string, one?: string) => {
        if (one !== undefined) return escapes[one] ?? whole;
        const point = Number.parseInt(u4 ?? u8 ?? "0", 16);
        return point <= 0x10ffff ? String.fromCodePoint(point) : whole;
      },
    );
}

class Scanner {
  #text: string;
  #at = 0;
  constructor(text: string) {
    this.#text = text;
  }

  /** Reads a body up to its closing brace (consumed) or the end of the text. */
  body(depth: number): Pick<HclBlock, "attributes" | "blocks"> {
    const attributes = new Map<string, string>();
    const blocks: HclBlock[] = [];
    while (this.#at < this.#text.length) {
      this.#skipSpace();
      if (this.#text[this.#at] === "}") {
        this.#at++;
        break;
      }
      const name = this.#match(IDENT)?.[0];
      if (name === undefined) {
        if (!this.#skipToken()) this.#at++;
        continue;
      }
      const labels = this.#labels();
      const next = this.#text[this.#at];
      if (next === "=" && labels.length === 0) {
        this.#at++;
        attributes.set(name, this.#expression());
      } else if (next === "{") {
        this.#at++;
        if (depth >= MAX_DEPTH) break;
        blocks.push({ type: name, labels, ...this.body(depth + 1) });
      }
    }
    return { attributes, blocks };
  }

  #labels(): string[] {
    const labels: string[] = [];
    for (;;) {
      this.#skipInline();
      const start = this.#at;
      if (this.#text[start] === '"') {
        this.#skipString();
        const value = literalValue(this.#text.slice(start, this.#at));
        labels.push(typeof value === "string" ? value : "");
        continue;
      }
      const word = this.#match(IDENT)?.[0];
      if (word === undefined) return labels;
      labels.push(word);
    }
  }

  /** An expression ends at the first newline outside brackets, or at the brace that closes the block. */
  #expression(): string {
    const start = this.#at;
    let depth = 0;
    while (this.#at < this.#text.length) {
      const c = this.#text[this.#at]!;
      if (depth === 0 && (c === "\n" || c === "}" || c === "#" || this.#text.startsWith("//", this.#at)))
        break;
      if (this.#skipToken()) continue;
      if (c === "(" || c === "[" || c === "{") depth++;
      if (c === ")" || c === "]" || c === "}") depth--;
      this.#at++;
    }
    return this.#text.slice(start, this.#at).trim();
  }

  /** Skips a string, heredoc or comment when one starts here. */
  #skipToken(): boolean {
    const c = this.#text[this.#at];
    if (c === '"') {
      this.#skipString();
      return true;
    }
    if (c === "<") {
      const heredoc = this.#match(HEREDOC);
      if (!heredoc) return false;
      const end = new RegExp(`^[ \\t]*${heredoc[1]}[ \\t]*$`, "gmu");
      end.lastIndex = this.#at;
      const found = end.exec(this.#text);
      this.#at = found ? found.index + found[0].length : this.#text.length;
      return true;
    }
    return (c === "#" || c === "/") && this.#skipComment();
  }

  #skipString(): void {
    // `interpolations` counts open braces of each nested ${...}; a quote inside one opens a nested string.
    const interpolations: number[] = [];
    let inString = true;
    this.#at++;
    while (this.#at < this.#text.length) {
      const c = this.#text[this.#at]!;
      if (inString) {
        if (c === "\\") this.#at++;
        else if ((c === "$" || c === "%") && this.#text[this.#at + 1] === "{") {
          if (this.#text[this.#at - 1] !== c) {
            interpolations.push(0);
            inString = false;
          }
          this.#at++;
        } else if (c === '"' || c === "\n") {
          if (interpolations.length === 0) {
            if (c === '"') this.#at++;
            return;
          }
          inString = false;
        }
      } else if (c === '"') inString = true;
      else if (c === "{") interpolations[interpolations.length - 1]!++;
      else if (c === "}") {
        if (interpolations[interpolations.length - 1]! > 0) interpolations[interpolations.length - 1]!--;
        else {
          interpolations.pop();
          inString = true;
        }
      }
      this.#at++;
    }
  }

  #skipComment(): boolean {
    const rest = this.#text.slice(this.#at, this.#at + 2);
    if (rest === "/*") {
      const end = this.#text.indexOf("*/", this.#at + 2);
      this.#at = end < 0 ? this.#text.length : end + 2;
      return true;
    }
    if (rest[0] !== "#" && rest !== "//") return false;
    const end = this.#text.indexOf("\n", this.#at);
    this.#at = end < 0 ? this.#text.length : end;
    return true;
  }

  #skipSpace(): void {
    for (;;) {
      const start = this.#at;
      while (/\s/.test(this.#text[this.#at] ?? "")) this.#at++;
      const c = this.#text[this.#at];
      if (c === "#" || c === "/") this.#skipComment();
      if (this.#at === start) return;
    }
  }

  #skipInline(): void {
    while (this.#text[this.#at] === " " || this.#text[this.#at] === "\t") this.#at++;
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found) this.#at += found[0].length;
    return found;
  }
}
