import assert from "node:assert/strict";
import type { TemplateParameter } from "../provisioner/protocol.ts";
import { resolveParameters } from "./parameters.ts";

type Overrides = Partial<Omit<TemplateParameter, "validation">> & {
  validation?: Partial<TemplateParameter["validation"]>;
};

function parameter(overrides: Overrides): TemplateParameter {
  return {
    name: "p",
    displayName: "",
    description: "",
    type: "string",
    formType: "input",
    styling: "",
    mutable: true,
    ephemeral: false,
    required: false,
    defaultValue: "default",
    icon: "",
    order: 0,
    options: [],
    ...overrides,
    validation: { regex: "", error: "", monotonic: "", ...overrides.validation },
  };
}

const value = (text: string) => [{ name: "p", value: text }];

describe("parameters of a build", () => {
  it("take the value given, else the preset's, else the build's before, else the default", () => {
    const definitions = [parameter({})];
    const all = { definitions, given: value("given"), preset: value("preset"), previous: value("before") };
    assert.deepEqual(resolveParameters(all), { values: value("given"), problems: [] });
    assert.deepEqual(resolveParameters({ ...all, given: [] }).values, value("preset"));
    assert.deepEqual(resolveParameters({ ...all, given: [], preset: [] }).values, value("before"));
    assert.deepEqual(resolveParameters({ definitions, given: [] }).values, value("default"));
  });

  it("an ephemeral value is not carried over", () => {
    const definitions = [parameter({ ephemeral: true })];
    assert.deepEqual(
      resolveParameters({ definitions, given: [], previous: value("before") }).values,
      value("default"),
    );
  });

  it("an immutable one stays, and says so when asked to change", () => {
    const definitions = [parameter({ mutable: false })];
    const { values, problems } = resolveParameters({
      definitions,
      given: value("new"),
      previous: value("old"),
    });
    assert.deepEqual(values, value("old"));
    assert.match(problems[0].detail, /can't be changed/);
    assert.deepEqual(
      resolveParameters({ definitions, given: value("old"), previous: value("old") }).problems,
      [],
    );
  });

  for (const [name, overrides, bad, good] of [
    ["a required one needs a value", { required: true, defaultValue: "" }, undefined, "x"],
    ["a number", { type: "number" }, "ten", "10"],
    ["a number within bounds", { type: "number", validation: { min: 1, max: 5 } }, "6", "5"],
    ["a bool", { type: "bool" }, "yes", "true"],
    ["a list", { type: "list(string)" }, "a,b", '["a","b"]'],
    ["a pattern", { validation: { regex: "^[a-z]+$" } }, "A1", "abc"],
    ["an option", { options: [{ name: "A", value: "a", description: "", icon: "" }] }, "b", "a"],
    [
      "several options",
      { type: "list(string)", options: [{ name: "A", value: "a", description: "", icon: "" }] },
      '["a","b"]',
      '["a"]',
    ],
  ] as [string, Overrides, string | undefined, string][]) {
    it(`${name} is checked`, () => {
      const definitions = [parameter({ required: true, ...overrides })];
      const resolve = (text?: string) => resolveParameters({ definitions, given: text ? value(text) : [] });
      assert.deepEqual(
        resolve(bad).problems.map(({ field }) => field),
        ["p"],
      );
      assert.deepEqual(resolve(good).problems, []);
    });
  }

  it("a monotonic number may only go its way", () => {
    const definitions = [parameter({ type: "number", validation: { monotonic: "increasing" } })];
    const problems = (next: string) =>
      resolveParameters({ definitions, given: value(next), previous: value("10") }).problems;
    assert.equal(problems("11").length, 0);
    assert.match(problems("9")[0].detail, /only grow; it was 10/);
  });

  it("the author's message is shown, and an unknown name is refused", () => {
    const definitions = [
      parameter({ type: "number", validation: { max: 5, error: "{value} is above {max}" } }),
    ];
    assert.equal(resolveParameters({ definitions, given: value("6") }).problems[0].detail, "6 is above 5");
    assert.equal(
      resolveParameters({ definitions, given: [{ name: "other", value: "1" }] }).problems[0].field,
      "other",
    );
  });

  it("a pattern that never finishes is given up instead of holding the server", () => {
    const definitions = [parameter({ validation: { regex: "^(a+)+$" } })];
    const started = performance.now();
    assert.deepEqual(resolveParameters({ definitions, given: value(`${"a".repeat(40)}!`) }).problems, []);
    assert.ok(performance.now() - started < 5000);
  });
});
