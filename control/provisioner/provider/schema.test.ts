import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import { build, FIXTURES, type Json, text, useBuilds } from "./testing.ts";

describe("the provider's schema", () => {
  useBuilds();

  it("shows the schema written down by hand", async () => {
    const schema = await (await build("small")).json("providers", "schema", "-json");
    const published = schema.provider_schemas["registry.terraform.io/coder/coder"];
    const lines = ["provider", ...describeBlock(published.provider.block, "  ")];
    for (const [kind, types] of [
      ["resource", published.resource_schemas],
      ["data", published.data_source_schemas],
    ] as const)
      for (const [name, { version, block }] of Object.entries(types).sort())
        lines.push(
          `${kind} ${name}${kind === "resource" ? ` ${version}` : ""}`,
          ...describeBlock(block, "  "),
        );
    const golden = readFileSync(path.join(FIXTURES, "schema.txt"), "utf8");
    assert.deepEqual(
      lines,
      golden.split("\n").filter((line) => line !== "" && !line.startsWith("#")),
    );
  });
});

/** One line per attribute, then the blocks, each by name; see the fixture's header. */
function describeBlock(block: Json, indent: string): string[] {
  const typeText = (type: Json): string => {
    if (!Array.isArray(type)) return text(type);
    if (type[0] !== "object") return `${type[0]}(${typeText(type[1])})`;
    const fields = Object.entries(type[1] as Json).map(([name, field]) => `${name}:${typeText(field)}`);
    return `object({${fields.join(",")}})`;
  };
  const attributes = Object.entries(block.attributes ?? {}).map(([name, attribute]) => {
    const flags = [
      attribute.required && "R",
      attribute.optional && "O",
      attribute.computed && "C",
      attribute.sensitive && "S",
    ];
    return `${indent}${name}:${typeText(attribute.type)} ${flags.filter(Boolean).join("")}`;
  });
  const blocks = Object.entries(block.block_types ?? {})
    .sort()
    .flatMap(([name, nested]) => {
      const limits = [
        nested.min_items === undefined ? "" : ` min ${nested.min_items}`,
        nested.max_items === undefined ? "" : ` max ${nested.max_items}`,
      ];
      return [
        `${indent}${name} ${nested.nesting_mode}${limits.join("")}`,
        ...describeBlock(nested.block, `${indent}  `),
      ];
    });
  return [...attributes.sort(), ...blocks];
}
