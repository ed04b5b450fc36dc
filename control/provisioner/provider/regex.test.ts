import assert from "node:assert/strict";
import fc from "fast-check";
import { compileRegex } from "./regex.ts";

/** pattern, texts it matches, texts it does not: by RE2's documented syntax. */
const cases: [pattern: string, yes: string[], no: string[]][] = [
  ["", ["", "a"], []],
  ["b", ["b", "abc"], ["", "ac"]],
  ["^[a-z][a-z0-9-]{0,3}$", ["a", "ab-1"], ["", "1a", "abcde", "A", "a\n"]],
  ["\\Aab\\z", ["ab"], ["ab\n", "xab"]],
  ["^a$", ["a"], ["b\na\nb"]],
  ["(?m)^a$", ["a", "b\na\nb"], ["b\nab"]],
  ["a.c", ["abc", "a\rc", "a\u2028c", "a😀c"], ["a\nc", "ac"]],
  ["(?s)a.c", ["a\nc"], ["ac"]],
  ["(?i)straße|ÄB", ["STRAßE", "äb", "Äb"], ["a"]],
  ["a(?i)b", ["ab", "aB"], ["Ab"]],
  ["(?i:a)b", ["Ab"], ["AB"]],
  ["(?i)a(?-i)b", ["Ab"], ["AB"]],
  ["(?i)[^a]", ["b"], ["a", "A"]],
  ["x(?:ab|cd)*y", ["xy", "xabcdy"], ["xaby2", "xacy"].slice(1)],
  ["^(a|)+$", ["", "aaa"], ["b"]],
  ["^(?P<one>a)(?<two>b)$", ["ab"], ["a"]],
  ["^a{2}$", ["aa"], ["a", "aaa"]],
  ["^a{2,}?$", ["aa", "aaaa"], ["a"]],
  ["^a{1,2}$", ["a", "aa"], ["", "aaa"]],
  ["^a{,2}$", ["a{,2}"], ["aa"]],
  ["^a{b}]$", ["a{b}]"], ["a"]],
  ["^[]a]+$", ["]a"], ["b"]],
  ["^[^]a]$", ["b", "\n"], ["]", "a"]],
  ["^[a-]+$", ["a-"], ["b"]],
  ["^[\\d\\-x]+$", ["1-x"], ["y"]],
  ["^[\\W]+$", ["-é"], ["a", "_"]],
  ["^[[:alpha:]_[:^ascii:]]+$", ["aZ_é"], ["1"]],
  ["^\\s+$", [" \t\n\r\f"], ["\v", "\u00a0"]],
  ["^\\S$", ["\u00a0", "a"], [" "]],
  ["^\\d+$", ["09"], ["٣"]],
  ["^\\w+$", ["aZ_9"], ["é", "-"]],
  ["\\bcat\\b", ["a cat.", "cat"], ["cats", "_cat"]],
  ["\\Bcat", ["xcat"], ["cat"]],
  ["^\\pL\\p{Greek}\\P{Lu}\\p{^Lu}$", ["éαaa"], ["éaaa", "éαAa"]],
  ["^\\Qa.*\\E+$", ["a.*", "a.**"], ["abc"]],
  ["^\\x41\\x{1F600}\\101\\t\\.$", ["A😀A\t."], ["A"]],
  ["^.$", ["😀"], ["😀😀"]],
  ["^^a$$", ["a"], ["b"]],
  ["(^)*a", ["ba"], ["b"]],
];

const refused: [pattern: string, reason: RegExp][] = [
  ["(?=a)", /lookaround/],
  ["(?!a)", /lookaround/],
  ["(?<=a)b", /lookaround/],
  ["(?<!a)b", /lookaround/],
  ["(?>a)", /lookaround and atomic/],
  ["(a)\\1", /back references/],
  ["a\\Z", /not an escape/],
  ["\\h", /not an escape/],
  ["[\\b]", /not an escape/],
  ["(", /not closed/],
  [")", /no opening/],
  ["[a", /not closed/],
  ["[b-a]", /ends before it begins/],
  ["[[:letters:]]", /not a class/],
  ["*a", /nothing to repeat/],
  ["a|*", /nothing to repeat/],
  ["a**", /repeats a repetition/],
  ["a++", /repeats a repetition/],
  ["a{1001}", /repeat count/],
  ["a{2,1}", /repeat count/],
  ["\\p{Klingon}", /not a Unicode class/],
  ["\\", /escapes nothing/],
  ["(?P<n>a)(?P<n>b)", /two groups/],
  ["(?z)", /nothing RE2 knows/],
  ["((a{100}){100}){100}", /too large/],
  ["(".repeat(1000), /nested groups/],
  ["a".repeat(20_000), /longer than/],
];

describe("regular expressions as RE2 reads them", () => {
  for (const [pattern, yes, no] of cases)
    it(`${JSON.stringify(pattern)} tells its texts from others`, () => {
      const regex = compileRegex(pattern);
      assert.deepEqual(
        [yes.filter((text) => !regex.matches(text)), no.filter((text) => regex.matches(text))],
        [[], []],
      );
    });

  for (const [pattern, reason] of refused)
    it(`${JSON.stringify(pattern.slice(0, 30))} is refused`, () =>
      assert.throws(
        () => compileRegex(pattern),
        (problem: Error) => {
          assert.match(problem.message, reason);
          assert.equal((problem as { code?: string }).code, "ERR_PROVIDER_REGEX");
          return true;
        },
      ));

  it("takes linear time where backtracking takes exponential", () => {
    const began = performance.now();
    assert.equal(compileRegex("^(a+)+$").matches(`${"a".repeat(5000)}!`), false);
    assert.equal(compileRegex("(((((){1000}){1000}){1000}){1000}){1000}").matches("a"), true);
    assert.ok(performance.now() - began < 2000);
  });

  it("agrees with JavaScript on what the two have in common", () => {
    const leaf = fc.constantFrom("a", "b", "[ab]", "[^a]", "(?:a|b)", "^", "$", "\\b");
    const { pattern } = fc.letrec<{ pattern: string }>((tie) => ({
      pattern: fc.oneof(
        { depthSize: "small" },
        leaf,
        fc.tuple(tie("pattern"), tie("pattern")).map((pair) => pair.join("")),
        fc.tuple(tie("pattern"), tie("pattern")).map(([one, other]) => `(${one}|${other})`),
        fc
          .tuple(tie("pattern"), fc.constantFrom("*", "+", "?", "{2}", "{1,3}"))
          .map(([one, sign]) => `(?:${one})${sign}`),
      ),
    }));
    const text = fc.string({ unit: fc.constantFrom("a", "b", "-"), maxLength: 8 });
    fc.assert(
      fc.property(pattern, text, (pattern, text) => {
        assert.equal(compileRegex(pattern).matches(text), new RegExp(pattern, "u").test(text));
      }),
    );
  });
});
