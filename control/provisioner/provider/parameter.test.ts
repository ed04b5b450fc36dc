import assert from "node:assert/strict";
import { evaluateParameter, type ParameterDeclaration } from "./parameter.ts";

type Options = ParameterDeclaration["options"];
const declare = (changes: Partial<ParameterDeclaration>): ParameterDeclaration => ({
  name: "p",
  displayName: "",
  description: "",
  type: "string",
  formType: "",
  styling: "{}",
  mutable: false,
  ephemeral: false,
  default: undefined,
  icon: "",
  order: 0,
  options: [],
  validation: undefined,
  ...changes,
});
const options = (...values: string[]): Options =>
  values.map((value) => ({ name: `name of ${value}`, value, description: "", icon: "" }));
const validation = (changes: Partial<NonNullable<ParameterDeclaration["validation"]>>) => ({
  regex: "",
  error: "",
  monotonic: "",
  ...changes,
});

interface Case {
  name: string;
  declared: Partial<ParameterDeclaration>;
  given?: string;
  previous?: string;
  /** Either the value, */
  value?: string;
  form?: string;
  /** or what the one problem says; `value` tells whether the user could change it. */
  problem?: RegExp;
  blames?: "template" | "value";
  at?: (string | number)[];
}

const cases: Case[] = [
  { name: "the default is taken when nothing is given", declared: { default: "d" }, value: "d" },
  { name: "what is given wins over the default", declared: { default: "d" }, given: "g", value: "g" },
  { name: "an empty text that is given wins too", declared: { default: "d" }, given: "", value: "" },
  {
    name: "without either and without validation the value is empty",
    declared: { type: "number" },
    value: "",
  },

  {
    name: "ephemeral needs mutable, before anything else",
    declared: { ephemeral: true, formType: "slider" },
    problem: /immutable and ephemeral/,
    blames: "template",
  },
  {
    name: "ephemeral needs a default",
    declared: { ephemeral: true, mutable: true },
    problem: /requires the default/,
    blames: "template",
  },
  {
    name: "ephemeral with both is fine",
    declared: { ephemeral: true, mutable: true, default: "" },
    value: "",
  },

  { name: "a string is typed in", declared: {}, form: "input", value: "" },
  {
    name: "a string with options is chosen",
    declared: { options: options("a") },
    given: "a",
    form: "radio",
    value: "a",
  },
  { name: "a number is typed in", declared: { type: "number", default: "1" }, form: "input", value: "1" },
  {
    name: "a bool is a checkbox",
    declared: { type: "bool", default: "true" },
    form: "checkbox",
    value: "true",
  },
  {
    name: "a bool with options may be a dropdown",
    declared: { type: "bool", formType: "dropdown", options: options("true", "false"), default: "true" },
    form: "dropdown",
    value: "true",
  },
  {
    name: "a list is tags",
    declared: { type: "list(string)", default: "[]" },
    form: "tag-select",
    value: "[]",
  },
  {
    name: "a form that does not fit the type is refused, before the options",
    declared: { formType: "slider", options: options("a", "a") },
    problem: /shown as radio or dropdown, not as slider/,
    blames: "template",
    at: ["form_type"],
  },
  {
    name: "the form error fits nothing",
    declared: { formType: "error" },
    problem: /not as error/,
    blames: "template",
  },

  {
    name: "option values are unique",
    declared: { options: options("a", "a").map((option, i) => ({ ...option, name: `${i}` })) },
    given: "a",
    problem: /values must be unique/,
    blames: "template",
    at: ["option", 1, "value"],
  },
  {
    name: "option names are unique",
    declared: { options: options("a", "b").map((option) => ({ ...option, name: "n" })) },
    given: "a",
    problem: /names must be unique/,
    blames: "template",
    at: ["option", 1, "name"],
  },
  {
    name: "options are of the type, even before a value is given",
    declared: { type: "number", options: options("1", "x") },
    problem: /"x" is not a number/,
    blames: "template",
    at: ["option", 1, "value"],
  },
  {
    name: "a multi-select's options are strings",
    declared: {
      type: "list(string)",
      formType: "multi-select",
      options: options("a", "b"),
      default: '["b"]',
    },
    value: '["b"]',
  },
  {
    name: "a list's other options are lists",
    declared: { type: "list(string)", options: options("a") },
    problem: /"a" is not a JSON list/,
    blames: "template",
  },

  {
    name: "a value outside the options is refused",
    declared: { options: options("a") },
    given: "b",
    problem: /"b" is not among/,
    blames: "value",
    at: [],
  },
  {
    name: "a default outside the options is refused where it stands",
    declared: { options: options("a"), default: "b" },
    problem: /Default value must be a valid option/,
    blames: "value",
    at: ["default"],
  },
  {
    name: "a missing value with options and validation is told as empty",
    declared: { options: options("a"), validation: validation({}) },
    problem: /The value is empty/,
    blames: "value",
  },
  {
    name: "each element of a multi-select is an option",
    declared: { type: "list(string)", formType: "multi-select", options: options("a") },
    given: '["a","x","y"]',
    problem: /Not among the options: "x", "y"/,
    blames: "value",
  },
  {
    name: "a multi-select's value is a list",
    declared: { type: "list(string)", formType: "multi-select", options: options("a") },
    given: "a",
    problem: /not a JSON list/,
    blames: "value",
  },
  {
    name: "options are looked at before the validation block",
    declared: { type: "number", options: options("1"), validation: validation({ max: 0 }) },
    given: "2",
    problem: /not among/,
    blames: "value",
  },

  {
    name: "a min is for numbers",
    declared: { validation: validation({ min: 0 }) },
    given: "a",
    problem: /min cannot be specified for a string/,
    blames: "template",
  },
  {
    name: "a max is for numbers",
    declared: { type: "bool", validation: validation({ max: 0 }) },
    given: "true",
    problem: /max cannot be specified for a bool/,
    blames: "template",
  },
  {
    name: "monotonic is for numbers",
    declared: { validation: validation({ monotonic: "increasing" }) },
    given: "a",
    problem: /only be specified for the number type/,
    blames: "template",
  },
  {
    name: "a regex is for strings",
    declared: { type: "number", validation: validation({ regex: "1", error: "e" }) },
    given: "1",
    problem: /regex cannot be specified for a number/,
    blames: "template",
  },
  {
    name: "a regex needs an error",
    declared: { validation: validation({ regex: "a" }) },
    given: "a",
    problem: /needs an error/,
    blames: "template",
  },
  {
    name: "a regex that RE2 refuses is the template's fault",
    declared: { validation: validation({ regex: "(?=a)", error: "e" }) },
    given: "a",
    problem: /lookaround/,
    blames: "template",
  },
  {
    name: "a regex that does not match shows the error",
    declared: { validation: validation({ regex: "^a+$", error: "only a" }) },
    given: "b",
    problem: /only a \(value "b" does not match/,
    blames: "value",
  },
  {
    name: "a regex matches anywhere unless anchored",
    declared: { validation: validation({ regex: "b", error: "e" }) },
    given: "abc",
    value: "abc",
  },
  {
    name: "with a validation block a bool is spelled out",
    declared: { type: "bool", validation: validation({}) },
    given: "1",
    problem: /must be "true" or "false"/,
    blames: "value",
  },
  { name: "without one a bool is what Go takes for one", declared: { type: "bool" }, given: "1", value: "1" },
  {
    name: "with a validation block a number is whole",
    declared: { type: "number", validation: validation({}) },
    given: "1.5",
    problem: /"1.5" is not a whole number/,
    blames: "value",
  },
  {
    name: "without one a number may be a fraction",
    declared: { type: "number" },
    given: "1.5e3",
    value: "1.5e3",
  },
  {
    name: "a number below the minimum is refused",
    declared: { type: "number", validation: validation({ min: 2, max: 3 }) },
    given: "1",
    problem: /1 is less than the minimum 2/,
    blames: "value",
  },
  {
    name: "a number above the maximum is refused",
    declared: { type: "number", validation: validation({ min: 2, max: 3 }) },
    given: "4",
    problem: /4 is more than the maximum 3/,
    blames: "value",
  },
  {
    name: "a minimum of 0 counts",
    declared: { type: "number", validation: validation({ min: 0 }) },
    given: "-1",
    problem: /less than the minimum 0/,
    blames: "value",
  },
  {
    name: "an error of the template's own is filled in",
    declared: {
      type: "number",
      validation: validation({ min: 2, max: 3, error: "{value}: {min} to {max}, {value}" }),
    },
    given: "4",
    problem: /4: 2 to 3, 4/,
    blames: "value",
  },
  {
    name: "a number of more than 53 bits is compared exactly",
    declared: { type: "number", validation: validation({ monotonic: "increasing" }) },
    given: "9007199254740992",
    previous: "9007199254740993",
    problem: /equal or greater/,
    blames: "value",
  },
  {
    name: "increasing allows the same again",
    declared: { type: "number", validation: validation({ monotonic: "increasing" }) },
    given: "3",
    previous: "3",
    value: "3",
  },
  {
    name: "increasing refuses less",
    declared: { type: "number", validation: validation({ monotonic: "increasing" }) },
    given: "2",
    previous: "3",
    problem: /equal or greater than the previous value 3/,
    blames: "value",
  },
  {
    name: "decreasing refuses more",
    declared: { type: "number", validation: validation({ monotonic: "decreasing" }) },
    given: "4",
    previous: "3",
    problem: /equal or lower than the previous value 3/,
    blames: "value",
  },
  {
    name: "a previous value that is no number is passed over",
    declared: { type: "number", validation: validation({ monotonic: "increasing" }) },
    given: "2",
    previous: "x",
    value: "2",
  },
  {
    name: "another word for monotonic is refused",
    declared: { type: "number", validation: validation({ monotonic: "up" }) },
    given: "2",
    problem: /"increasing" or "decreasing"/,
    blames: "template",
  },
  {
    name: "a list with a validation block is a list",
    declared: { type: "list(string)", validation: validation({}) },
    given: "[1]",
    problem: /not a JSON list of strings/,
    blames: "value",
  },
  {
    name: "a validation block looks at a missing value too",
    declared: { type: "number", validation: validation({}) },
    problem: /"" is not a whole number/,
    blames: "value",
  },

  {
    name: "a value of another type is refused last",
    declared: { type: "number" },
    given: "ten",
    problem: /not of type "number".*"ten" is not a number/,
    blames: "value",
  },
  {
    name: "a default of another type is refused",
    declared: { type: "bool", default: "yes" },
    problem: /"yes" is not a bool/,
    blames: "value",
  },
];

describe("the value of a parameter", () => {
  for (const { name, declared, given, previous, value, form, problem, blames, at } of cases)
    it(name, () => {
      const outcome = evaluateParameter(declare(declared), given, previous);
      const told = outcome.problems.map(({ summary, detail }) => `${summary}: ${detail}`);
      if (form) assert.equal(outcome.formType, form);
      if (!problem) {
        assert.deepEqual(told, []);
        assert.equal(outcome.value, value);
        return;
      }
      assert.equal(told.length, 1);
      assert.match(told[0], problem);
      assert.equal(outcome.isValueProblem ? "value" : "template", blames);
      if (at) assert.deepEqual(outcome.problems[0].path, at);
    });
});
