import assert from "node:assert/strict";
import fc from "fast-check";
import { containsPattern, parseSearch } from "./search.ts";

const KEYS = ["owner", "name", "status"] as const;

describe("search syntax", () => {
  for (const [text, words, keys] of [
    ["", [], {}],
    ["dev", ["dev"], {}],
    ["ada/dev", ["ada/dev"], {}],
    ["owner:me  Status:Running", [], { owner: "me", status: "running" }],
    ['name:"my box" x', ["x"], { name: "my box" }],
    ['"two words"', ["two words"], {}],
    ["name:a:b", [], { name: "a:b" }],
  ] as const) {
    it(`reads ${JSON.stringify(text)}`, () =>
      assert.deepEqual(parseSearch(text, KEYS), { words, keys, problems: [] }));
  }

  for (const [text, field] of [
    ["colour:red", "colour"],
    ["owner:me owner:you", "owner"],
    ["owner:", "owner"],
    ['name:"open', "q"],
    ["__proto__:x", "__proto__"],
  ]) {
    it(`says what is wrong with ${JSON.stringify(text)}`, () =>
      assert.deepEqual(
        parseSearch(text, KEYS).problems.map((problem) => problem.field),
        [field],
      ));
  }

  it("takes any text without throwing, and yields only known keys", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const { keys } = parseSearch(text, KEYS);
        assert.ok(Object.keys(keys).every((key) => (KEYS as readonly string[]).includes(key)));
      }),
    );
  });

  it("a pattern finds its text as it stands, wildcards included", () => {
    assert.equal(containsPattern("50%_\\"), "%50\\%\\_\\\\%");
  });
});
