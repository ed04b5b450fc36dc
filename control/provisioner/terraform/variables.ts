// Template variables (Terraform `variable` blocks of the root module): what a template asks its author for, and
// how values reach Terraform. Pure.
import type { TemplateVariable, TemplateVariableValue } from "../protocol.ts";
import { type HclBlock, literalValue, scanBlocks } from "./hcl.ts";

export interface TemplateFile {
  /** Path inside the template; only those of the root folder count. */
  name: string;
  text: string;
}

const PRIMITIVES = new Set(["", "any", "string", "number", "bool"]);

/** @returns the variables the root module declares, sorted by name */
export function readVariables(files: TemplateFile[]): TemplateVariable[] {
  const merged = new Map<string, Map<string, string>>();
  for (const file of overridesLast(files)) {
    for (const [name, attributes] of file.name.endsWith(".json")
      ? jsonVariables(file.text)
      : hclVariables(file.text))
      merged.set(name, new Map([...(merged.get(name) ?? []), ...attributes]));
  }
  return [...merged]
    .map(([name, attributes]) => toVariable(name, attributes))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Fills in what Terraform itself evaluated: the `configuration.root_module.variables` of a plan's JSON. */
export function withPlannedDefaults(
  variables: TemplateVariable[],
  planned: Record<string, { default?: unknown; description?: string; sensitive?: boolean }>,
): TemplateVariable[] {
  const known = new Map(variables.map((variable) => [variable.name, variable]));
  return Object.entries(planned)
    .map(([name, { default: value, description, sensitive }]) => ({
      name,
      description: description ?? "",
      type: known.get(name)?.type ?? "",
      defaultValue: value === undefined ? (known.get(name)?.defaultValue ?? "") : asText(value),
      // A default of null is not printed, so only the source tells it from none.
      required: value === undefined && (known.get(name)?.required ?? true),
      sensitive: sensitive ?? false,
    }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/**
 * Values as files for `-var-file`: never on a command line (others can list it) and not in the environment
 * (local-exec scripts and foreign providers inherit it).
 *
 * @returns `json` (`.tfvars.json`) for what JSON can say and `hcl` (`.tfvars`) for the rest; undeclared names are
 *   left out, as Terraform warns about each
 */
export function variableFiles(
  values: TemplateVariableValue[],
  declared: TemplateVariable[],
): { json: string; hcl: string } {
  const types = new Map(declared.map(({ name, type }) => [name, type]));
  const json: Record<string, unknown> = {};
  let hcl = "";
  for (const { name, value } of values) {
    const type = types.get(name);
    if (type === undefined) continue;
    if (PRIMITIVES.has(type)) json[name] = value;
    else {
      const parsed = parseJson(value);
      if (parsed !== undefined) json[name] = parsed;
      else hcl += `${name} = ${value}\n`;
    }
  }
  return { json: JSON.stringify(json), hcl };
}

/**
 * Whether `terraform init` has anything to do. The `coder/coder` provider is attached by us and the built-in one
 * is part of Terraform; without modules, a backend or other providers the folder is ready as it is.
 */
export function needsInit(files: TemplateFile[]): boolean {
  if (files.some(({ name }) => name.endsWith(".tf.json"))) return true;
  return files.flatMap(({ text }) => scanBlocks(text)).some(blockNeedsInit);
}

function blockNeedsInit(block: HclBlock): boolean {
  switch (block.type) {
    case "module":
      return true;
    case "provider":
    case "resource":
    case "data":
    case "ephemeral":
      return !/^(coder|terraform)(_|$)/.test(block.labels[0] ?? "");
    case "terraform":
      return block.blocks.some(
        (inner) =>
          inner.type === "backend" ||
          inner.type === "cloud" ||
          (inner.type === "required_providers" &&
            [...inner.attributes.values()].some(
              (value) => !/"(?:registry\.terraform\.io\/)?coder\/coder"/.test(value),
            )),
      );
    default:
      return false;
  }
}

function overridesLast(files: TemplateFile[]): TemplateFile[] {
  const isOverride = (name: string) => /(^|_)override\.tf(\.json)?$/.test(name);
  const root = files.filter(({ name }) => !name.includes("/") && /\.tf(\.json)?$/.test(name));
  return [
    ...root.filter(({ name }) => !isOverride(name)),
    ...root.filter(({ name }) => isOverride(name)).sort((a, b) => (a.name < b.name ? -1 : 1)),
  ];
}

function hclVariables(text: string): [string, Map<string, string>][] {
  return scanBlocks(text)
    .filter(({ type, labels }) => type === "variable" && labels.length === 1)
    .map(({ labels, attributes }) => [labels[0]!, attributes]);
}

function jsonVariables(text: string): [string, Map<string, string>][] {
  const root = parseJson(text);
  if (!isRecord(root) || !isRecord(root["variable"])) return [];
  return Object.entries(root["variable"])
    .filter((entry): entry is [string, Record<string, unknown>] => isRecord(entry[1]))
    .map(([name, body]) => [
      name,
      new Map(
        Object.entries(body).map(([key, value]) => [
          key,
          key === "type" && typeof value === "string" ? value : JSON.stringify(value),
        ]),
      ),
    ]);
}

function toVariable(name: string, attributes: Map<string, string>): TemplateVariable {
  const text = (key: string): string => {
    const raw = attributes.get(key);
    const value = raw === undefined ? undefined : literalValue(raw);
    return value === undefined || value === null ? "" : String(value);
  };
  const raw = attributes.get("default");
  return {
    name,
    description: text("description"),
    type: (attributes.get("type") ?? "").replace(/^"(.*)"$/, "$1").replace(/\s+/g, " "),
    defaultValue: raw !== undefined && literalValue(raw) === undefined ? raw : text("default"),
    required: raw === undefined,
    sensitive: attributes.get("sensitive") === "true",
  };
}

function asText(value: unknown): string {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
