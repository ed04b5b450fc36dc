// biome-ignore-all lint/suspicious/noTemplateCurlyInString: Terraform's own syntax
import assert from "node:assert/strict";
import fc from "fast-check";
import { literalValue, scanBlocks } from "./hcl.ts";
import { needsInit, readVariables, variableFiles, withPlannedDefaults } from "./variables.ts";

const main = (text: string) => [{ name: "main.tf", text }];

describe("template variables", () => {
  it("reads type, description, default and flags of each variable block", () => {
    const variables = readVariables(
      main(`
        # variable "commented" {}
        variable "plain" {}
        variable "region" {
          description = "Where \\"it\\" runs" // a comment with } in it
          type        = string
          default     = "eu-\${"x"}"
        }
        variable "sizes" { type = map(object({ cpu = number, name = optional(string, "}") })) }
        variable "count_" {
          type = number
          default = 3
          sensitive = true
          validation {
            condition     = var.count_ > 0 && "\${var.count_}" != "{"
            error_message = "no } here"
          }
        }
        variable "text" {
          default = <<-EOT
            a } line
              variable "fake" {}
          EOT
          description = ""
        }
        variable "nothing" { default = null }
        /* variable "hidden" {} */
      `),
    );
    assert.deepEqual(
      variables.map(({ name, type, defaultValue, required, sensitive }) => [
        name,
        type,
        defaultValue,
        required,
        sensitive,
      ]),
      [
        ["count_", "number", "3", false, true],
        ["nothing", "", "", false, false],
        ["plain", "", "", true, false],
        ["region", "string", '"eu-${"x"}"', false, false],
        ["sizes", 'map(object({ cpu = number, name = optional(string, "}") }))', "", true, false],
        ["text", "", 'a } line\n  variable "fake" {}\n', false, false],
      ],
    );
    assert.equal(variables[3]!.description, 'Where "it" runs');
  });

  it("reads JSON syntax, and lets override files win", () => {
    const variables = readVariables([
      { name: "x_override.tf", text: 'variable "a" { default = "two" }' },
      {
        name: "main.tf.json",
        text: '{"variable":{"a":{"type":"string","default":"one"},"b":{"sensitive":true}}}',
      },
      { name: "modules/m/main.tf", text: 'variable "inner" {}' },
    ]);
    assert.deepEqual(
      variables.map(({ name, type, defaultValue, sensitive }) => [name, type, defaultValue, sensitive]),
      [
        ["a", "string", "two", false],
        ["b", "", "", true],
      ],
    );
  });

  it("prefers what Terraform evaluated, and knows a null default from none", () => {
    const declared = readVariables(
      main('variable "a" { default = 1 + 1 }\nvariable "n" { default = null }\nvariable "r" {}'),
    );
    const planned = withPlannedDefaults(declared, { a: { default: 2 }, n: {}, r: { description: "needed" } });
    assert.deepEqual(
      planned.map(({ name, defaultValue, required, description }) => [
        name,
        defaultValue,
        required,
        description,
      ]),
      [
        ["a", "2", false, ""],
        ["n", "", false, ""],
        ["r", "", true, "needed"],
      ],
    );
  });

  it("writes values so that none can be taken for code, and leaves out what isn't declared", () => {
    const declared = readVariables(
      main('variable "s" {}\nvariable "l" { type = list(string) }\nvariable "m" { type = map(string) }'),
    );
    const files = variableFiles(
      [
        { name: "s", value: '["${not}"]' },
        { name: "l", value: '["a"]' },
        { name: "m", value: '{ a = "b" }' },
        { name: "unknown", value: "x" },
      ],
      declared,
    );
    assert.deepEqual(JSON.parse(files.json), { s: '["${not}"]', l: ["a"] });
    assert.equal(files.hcl, 'm = { a = "b" }\n');
  });

  for (const [what, text, expected] of [
    [
      "only built-in and coder resources",
      'data "coder_workspace" "me" {}\nresource "terraform_data" "x" {}',
      false,
    ],
    [
      "the coder provider named",
      'terraform {\n required_providers {\n coder = { source = "coder/coder" }\n }\n}',
      false,
    ],
    [
      "another provider named",
      'terraform {\n required_providers {\n d = { source = "kreuzwerker/docker" }\n }\n}',
      true,
    ],
    ["a provider by its resource alone", 'resource "null_resource" "x" {}', true],
    ["a provider by its data source alone", 'data "http" "x" {}', true],
    ["a module", 'module "m" {\n source = "./m"\n}', true],
    ["a backend", 'terraform {\n backend "s3" {}\n}', true],
    ["a word that begins like ours", 'resource "coderless_thing" "x" {}', true],
  ] as const)
    it(`${expected ? "runs" : "skips"} init for ${what}`, () =>
      assert.equal(needsInit(main(text)), expected));

  it("survives any text", () => {
    const piece = fc.constantFrom(
      "{",
      "}",
      '"',
      "${",
      "<<EOT\n",
      "\n",
      "=",
      "a",
      "variable",
      "/*",
      "//",
      "[",
      "\\",
      " ",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 60 }), (parts) => {
        scanBlocks(parts.join(""));
      }),
    );
    scanBlocks("a {".repeat(100_000));
  });

  for (const [text, value] of [
    ['"a\\n\\u0041$${x}"', "a\nA${x}"],
    ['"${x}"', undefined],
    ["-1.5", -1.5],
    ["null", null],
    ['"\\U00110000"', "\\U00110000"],
    ["local.x", undefined],
  ] as const)
    it(`reads the literal ${text}`, () => assert.deepEqual(literalValue(text), value));
});
