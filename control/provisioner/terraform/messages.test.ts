import assert from "node:assert/strict";
import { missingVariables, parseMessage, redactor, summarize } from "./messages.ts";

// Lines as terraform 1.11.4 printed them.
const UNCLOSED =
  '{"@level":"error","@message":"Error: Unclosed configuration block","@module":"terraform.ui","@timestamp":"2026-01-01T00:00:00Z","diagnostic":{"severity":"error","summary":"Unclosed configuration block","detail":"There is no closing brace for this block before the end of the file.","range":{"filename":"bad.tf","start":{"line":1,"column":33,"byte":32},"end":{"line":1,"column":34,"byte":33}},"snippet":{"context":"resource \\"terraform_data\\" \\"bad\\"","code":"resource \\"terraform_data\\" \\"bad\\" { ","start_line":1,"highlight_start_offset":32,"highlight_end_offset":33,"values":[]}},"type":"diagnostic"}';
const MISSING =
  '{"@level":"error","@message":"Error: No value for required variable","diagnostic":{"severity":"error","summary":"No value for required variable","detail":"The root module input variable \\"b\\" is not set, and has no default value.","range":{"filename":"main.tf","start":{"line":6,"column":1,"byte":73},"end":{"line":6,"column":13,"byte":85}},"snippet":{"context":null,"code":"variable \\"b\\" {","start_line":6,"values":[]}},"type":"diagnostic"}';

describe("terraform's messages", () => {
  it("show a diagnostic with its file, line and code", () => {
    assert.deepEqual(parseMessage(UNCLOSED)!.lines, [
      "Error: Unclosed configuration block",
      "",
      '  on bad.tf line 1, in resource "terraform_data" "bad":',
      '  1: resource "terraform_data" "bad" { ',
      "",
      "There is no closing brace for this block before the end of the file.",
    ]);
  });

  it("are summed up with the first error's place and the number of others", () => {
    const [first, second] = [parseMessage(UNCLOSED)!.diagnostic!, parseMessage(MISSING)!.diagnostic!];
    assert.match(summarize([first, second]), /^bad\.tf line 1: Unclosed .* \(and 1 more error\)$/);
    assert.equal(summarize([]), "");
  });

  it("name the variables that have no value", () => {
    assert.deepEqual(
      missingVariables([parseMessage(UNCLOSED)!.diagnostic!, parseMessage(MISSING)!.diagnostic!]),
      ["b"],
    );
  });

  for (const [what, line, level, lines] of [
    ["plain text", "hello", "info", ["hello"]],
    ["JSON of somebody else", '{"a":1}', "info", ['{"a":1}']],
    ["broken JSON", '{"@message":', "info", ['{"@message":']],
    [
      "a version",
      '{"@level":"info","@message":"Terraform 1.11.4","type":"version"}',
      "debug",
      ["Terraform 1.11.4"],
    ],
    [
      "a diagnostic some of whose parts have another shape",
      '{"@level":"error","@message":"m","type":"diagnostic","diagnostic":{"severity":"error","summary":"s","detail":1,"range":{"filename":"a"},"snippet":{"code":{}}}}',
      "error",
      ["Error: s"],
    ],
    [
      "a diagnostic of the wrong shape",
      '{"@level":"warn","@message":"m","type":"diagnostic","diagnostic":1}',
      "warn",
      ["m"],
    ],
  ] as const)
    it(`pass ${what}`, () => {
      const message = parseMessage(line)!;
      assert.deepEqual([message.level, message.lines], [level, [...lines]]);
    });

  it("have secrets blanked, also each line of one, but no ordinary words", () => {
    const redact = redactor(["s3cret.+value", "line one of key\nline two of key", "short", ""]);
    assert.equal(redact("x s3cret.+value y short, line two of key"), "x [hidden] y short, [hidden]");
  });

  it("reads of data and the plan an apply repeats are details, what changes is not", () => {
    const line = (type: string, extra: object) =>
      parseMessage(JSON.stringify({ "@level": "info", "@message": "text", type, ...extra }))!;
    assert.equal(line("apply_start", { hook: { action: "read" } }).level, "debug");
    assert.equal(line("apply_start", { hook: { action: "create" } }).level, "info");
    assert.equal(line("planned_change", {}).isPlannedChange, true);
    assert.equal(line("apply_start", {}).isPlannedChange, undefined);
  });
});
