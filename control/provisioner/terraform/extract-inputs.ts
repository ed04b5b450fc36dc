// What a template asks the user for: parameters, presets, tags, external logins. Pure.
import type { ImportResult, TemplateParameter } from "../protocol.ts";
import { TerraformError } from "./errors.ts";
import { type JsonResource, Values } from "./plan-json.ts";

export type ExtractedInputs = Pick<
  ImportResult,
  "parameters" | "presets" | "workspaceTags" | "externalAuth"
> & { warnings: string[] };

/**
 * @param input resources of a plan (`planResources`)
 * @throws {TerraformError} ERR_TEMPLATE_INVALID: a name used twice, two default presets
 */
export function extractInputs(input: JsonResource[]): ExtractedInputs {
  const ofType = (type: string) =>
    input
      .filter((resource) => resource.mode === "data" && resource.type === type)
      .map((resource) => ({ address: resource.address, values: new Values(resource.values) }));
  const warnings: string[] = [];

  const parameters = ofType("coder_parameter").map(({ values }) => readParameter(values));
  unique("parameter", parameters);
  parameters.sort((a, b) => a.order - b.order || (a.name < b.name ? -1 : 1));

  const presets = ofType("coder_workspace_preset").map(({ values }) => ({
    name: values.string("name"),
    description: values.string("description"),
    icon: values.string("icon"),
    default: values.boolean("default"),
    parameters: Object.entries(values.strings("parameters")).map(([name, value]) => ({ name, value })),
  }));
  unique("preset", presets);
  const defaults = presets.filter((preset) => preset.default).map(({ name }) => name);
  if (defaults.length > 1)
    throw new TerraformError(
      "ERR_TEMPLATE_INVALID",
      `the presets ${defaults.join(", ")} are all marked as default; keep one`,
    );
  const known = new Set(parameters.map(({ name }) => name));
  for (const preset of presets)
    for (const { name } of preset.parameters)
      if (!known.has(name)) warnings.push(`preset "${preset.name}" sets "${name}", which is no parameter`);

  const externalAuth = new Map<string, boolean>();
  for (const { values } of ofType("coder_external_auth")) {
    const id = values.string("id");
    // Asked for twice, it is optional only when both say so.
    externalAuth.set(id, (externalAuth.get(id) ?? true) && values.boolean("optional"));
  }
  return {
    parameters,
    presets,
    workspaceTags: Object.assign(
      {},
      ...ofType("coder_workspace_tags").map(({ values }) => values.strings("tags")),
    ),
    externalAuth: [...externalAuth].map(([id, optional]) => ({ id, optional })),
    warnings,
  };
}

function readParameter(values: Values): TemplateParameter {
  const validation = values.blocks("validation")[0] ?? new Values({});
  const type = values.string("type", "string");
  const bound = (name: "min" | "max") =>
    validation.has(name) && !validation.boolean(`${name}_disabled`)
      ? { [name]: validation.number(name) }
      : {};
  return {
    name: values.string("name"),
    displayName: values.string("display_name"),
    description: values.string("description"),
    type: type === "number" || type === "bool" || type === "list(string)" ? type : "string",
    formType: values.string("form_type"),
    styling: values.string("styling", "{}"),
    mutable: values.boolean("mutable"),
    ephemeral: values.boolean("ephemeral"),
    required: !values.boolean("optional"),
    defaultValue: values.string("default"),
    icon: values.string("icon"),
    order: values.number("order"),
    options: values.blocks("option").map((option) => ({
      name: option.string("name"),
      description: option.string("description"),
      value: option.string("value"),
      icon: option.string("icon"),
    })),
    validation: {
      regex: validation.string("regex"),
      error: validation.string("error"),
      monotonic: validation.string("monotonic"),
      ...bound("min"),
      ...bound("max"),
    },
  };
}

function unique(kind: string, items: { name: string }[]): void {
  const seen = new Set<string>();
  for (const { name } of items) {
    if (seen.has(name))
      throw new TerraformError("ERR_TEMPLATE_INVALID", `the ${kind} "${name}" is declared twice; rename one`);
    seen.add(name);
  }
}
