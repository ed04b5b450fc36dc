// Regular expressions with the syntax and meaning of RE2 (Go's package regexp), for `validation { regex = … }`.
// JavaScript's own differ in syntax, and take exponential time on patterns such as (a+)+$, which would let one
// template stop every build. So: parse, compile to a small automaton, run it in one pass over the text. Only the
// question "does it match anywhere" is answered, which makes greediness and captures irrelevant.
//
// @see https://github.com/google/re2/wiki/Syntax
import { ProviderError } from "./errors.ts";
import { type CodePointSet, parseRegex, type RegexNode } from "./regex-syntax.ts";

/** Instructions a pattern may compile to; a repetition such as x{1000} costs a thousand. */
const MAX_PROGRAM = 10_000;
/** Pattern size times text length: about a second of work. */
const MAX_STEPS = 50_000_000;

type Assertion = Extract<RegexNode, { kind: "assert" }>["what"];
type Instruction =
  | { kind: "char"; set: CodePointSet; next: number }
  | { kind: "split"; next: number; other: number }
  | { kind: "assert"; what: Assertion; next: number }
  | { kind: "match" };

export interface Regex {
  /**
   * Whether it matches anywhere in `text`. Time: text length times pattern size at worst.
   *
   * @throws {ProviderError} ERR_PROVIDER_REGEX when that product is out of bounds
   */
  matches(text: string): boolean;
}

/** @throws {ProviderError} ERR_PROVIDER_REGEX when RE2 would refuse the pattern, or it is too large */
export function compileRegex(pattern: string): Regex {
  const program: Instruction[] = [{ kind: "match" }];
  const start = compile(parseRegex(pattern), 0, program);
  return { matches: (text) => run(program, start, text) };
}

/** Appends the code for `node`, to be continued at `next`. @returns where the code begins */
function compile(node: RegexNode, next: number, program: Instruction[]): number {
  switch (node.kind) {
    case "empty":
      return next;
    case "char":
      return emit({ kind: "char", set: node.set, next }, program);
    case "assert":
      return emit({ kind: "assert", what: node.what, next }, program);
    case "sequence":
      return node.items.reduceRight((after, item) => compile(item, after, program), next);
    case "either":
      return node.items
        .map((item) => compile(item, next, program))
        .reduceRight((other, begin) => emit({ kind: "split", next: begin, other }, program));
    case "repeat": {
      let begin = next;
      if (node.max === Number.POSITIVE_INFINITY) {
        const loop: Instruction = { kind: "split", next: 0, other: next };
        begin = emit(loop, program);
        loop.next = compile(node.item, begin, program);
      } else
        for (let i = node.min; i < node.max; i++)
          begin = emit({ kind: "split", next: compile(node.item, begin, program), other: next }, program);
      for (let i = 0, before = -1; i < node.min && program.length !== before; i++) {
        before = program.length; // what compiles to nothing, compiles to nothing however often
        begin = compile(node.item, begin, program);
      }
      return begin;
    }
  }
}

function emit(instruction: Instruction, program: Instruction[]): number {
  if (program.length >= MAX_PROGRAM)
    throw new ProviderError("ERR_PROVIDER_REGEX", "the pattern is too large; repeat less");
  return program.push(instruction) - 1;
}

function run(program: Instruction[], start: number, text: string): boolean {
  const points = Array.from(text, (char) => char.codePointAt(0)!);
  if (points.length * program.length > MAX_STEPS)
    throw new ProviderError("ERR_PROVIDER_REGEX", "the value is too long for a pattern of this size");
  const seenAt = new Int32Array(program.length).fill(-1);
  let states: number[] = [];
  for (let position = 0; position <= points.length; position++) {
    // Follow everything that consumes nothing; each instruction is looked at once per position.
    const pending = [start, ...states.reverse()];
    const waiting: Extract<Instruction, { kind: "char" }>[] = [];
    while (pending.length > 0) {
      const at = pending.pop()!;
      if (seenAt[at] === position) continue;
      seenAt[at] = position;
      const instruction = program[at];
      if (instruction.kind === "match") return true;
      if (instruction.kind === "char") waiting.push(instruction);
      else if (instruction.kind === "split") pending.push(instruction.other, instruction.next);
      else if (holds(instruction.what, points[position - 1], points[position]))
        pending.push(instruction.next);
    }
    const point = points[position];
    states = point === undefined ? [] : waiting.filter(({ set }) => set.has(point)).map(({ next }) => next);
  }
  return false;
}

function holds(what: Assertion, before: number | undefined, after: number | undefined): boolean {
  switch (what) {
    case "text start":
      return before === undefined;
    case "text end":
      return after === undefined;
    case "line start":
      return before === undefined || before === 0x0a;
    case "line end":
      return after === undefined || after === 0x0a;
    case "word boundary":
      return isWord(before) !== isWord(after);
    case "no word boundary":
      return isWord(before) === isWord(after);
  }
}

const isWord = (point: number | undefined) => point !== undefined && /^\w$/.test(String.fromCodePoint(point));
