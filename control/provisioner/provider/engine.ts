// What Terraform asks of a provider, answered from the schema tables: validate, plan, apply, refresh, read,
// upgrade. Pure: values in, values and findings out. Unknown values may stand anywhere in a configuration, also in
// place of a whole list of blocks.
//
// Two rules decide most of it:
// - a planned attribute is the configuration's value, else its default, else (computed) the prior value or unknown.
//   Never the prior value of an attribute with a default: removing an argument must bring the default back;
// - blocks are as many as configured. Terraform enforces that of every provider that is not excused as "legacy".
import {
  type Attribute,
  type Block,
  blockType,
  type Call,
  type DataSource,
  error,
  type Finding,
  type Resource,
} from "./schema.ts";
import {
  ExactNumber,
  isObject,
  type ObjectValue,
  objectValue,
  sameMeaning,
  UNKNOWN,
  type Value,
  valueFromJson,
} from "./value.ts";

/** Checks a configuration: required arguments, whole numbers, each attribute's check, then the block's own. */
export function validate(block: Block, config: ObjectValue, path: Finding["path"] = []): Finding[] {
  const findings: Finding[] = [];
  for (const [name, attribute] of Object.entries(block.attributes))
    findings.push(...checkAttribute(attribute, name, config[name], [...path, name]));
  for (const [name, nested] of Object.entries(block.blocks ?? {})) {
    const items = config[name];
    if (!Array.isArray(items)) continue;
    for (const [index, item] of items.entries()) {
      // An element of a set has no address a path could name: such findings point at the set.
      const isList = nested.nesting === "list";
      const found = isObject(item) ? validate(nested.block, item, isList ? [...path, name, index] : []) : [];
      findings.push(...(isList ? found : found.map((finding) => within(finding, [...path, name]))));
    }
  }
  const own = block.validate?.(config) ?? [];
  return [...findings, ...own.map((finding) => ({ ...finding, path: [...path, ...finding.path] }))];
}

function within(finding: Finding, path: Finding["path"]): Finding {
  const where = finding.path.filter((step) => typeof step === "string").join(".");
  return { ...finding, path, detail: where ? `${where}: ${finding.detail}` : finding.detail };
}

function checkAttribute(attribute: Attribute, name: string, value: Value, path: Finding["path"]): Finding[] {
  if (value === UNKNOWN) return [];
  if (value === null) {
    if (attribute.mode !== "required") return [];
    return [
      error(`The argument "${name}" is required, but its value is null.`, path, "Missing required argument"),
    ];
  }
  if (attribute.integer) {
    const text = value instanceof ExactNumber ? value.text : String(value);
    if (!Number.isSafeInteger(value))
      return [
        error(`expected a whole number for "${name}", got ${text}`, path, `Invalid value for "${name}"`),
      ];
  }
  if (!attribute.check || (typeof value !== "string" && typeof value !== "number")) return [];
  return attribute.check(value).map(({ severity, detail }) => ({
    severity,
    summary: severity === "error" ? `Invalid value for "${name}"` : `Questionable value for "${name}"`,
    detail,
    path,
  }));
}

/** @param prior the object that exists, or null when one is to be created */
export function planValue(block: Block, config: ObjectValue, prior: ObjectValue | null): ObjectValue {
  const planned = objectValue();
  for (const [name, attribute] of Object.entries(block.attributes)) {
    const given = config[name];
    if (attribute.derive) planned[name] = attribute.derive(config);
    else if (given !== null) planned[name] = given;
    else if (attribute.default !== undefined) planned[name] = attribute.default;
    else if (attribute.mode.endsWith("computed")) planned[name] = prior ? prior[name] : UNKNOWN;
    else planned[name] = null;
  }
  for (const [name, nested] of Object.entries(block.blocks ?? {})) {
    const items = config[name];
    // Blocks have no computed attributes but derived ones, so what they held before does not matter.
    planned[name] = Array.isArray(items)
      ? items.map((item) => (isObject(item) ? planValue(nested.block, item, null) : item))
      : items;
  }
  return planned;
}

export interface Plan {
  /** null: the resource is to be destroyed. */
  planned: ObjectValue | null;
  /** Names of the top-level attributes and blocks whose change makes it a new resource. */
  replace: string[];
}

export function planResource(
  resource: Resource,
  prior: ObjectValue | null,
  proposed: ObjectValue | null,
  config: ObjectValue,
): Plan {
  if (!proposed) return { planned: null, replace: [] };
  const planned = planValue(resource, config, prior);
  if (!prior) return { planned, replace: [] };
  const attributes = Object.entries(resource.attributes)
    .filter(([, { mode, changeable }]) => mode !== "computed" && !changeable)
    .map(([name]) => name)
    .filter((name) => !sameMeaning(prior[name], planned[name]));
  const blocks = Object.entries(resource.blocks ?? {})
    .filter(([name, { assumed }]) => {
      const effective = (value: Value) =>
        assumed && Array.isArray(value) && value.length === 0 ? [assumed] : value;
      return !sameMeaning(effective(prior[name]), effective(planned[name]));
    })
    .map(([name]) => name);
  return { planned, replace: [...attributes, ...blocks] };
}

export interface Outcome {
  state: ObjectValue | null;
  findings: Finding[];
}

export function applyResource(
  resource: Resource,
  prior: ObjectValue | null,
  planned: ObjectValue | null,
  config: ObjectValue,
  call: Call,
): Outcome {
  if (!planned) return { state: null, findings: [] };
  // Terraform has planned once more with what is known by now, and so had the configuration checked again.
  const state = planValue(resource, config, prior);
  if (prior) return { state, findings: [] };
  state.id = state.id === UNKNOWN ? call.newId() : state.id;
  const findings = resource.create?.(state, call) ?? [];
  // A resource that failed to be created must not look as if it existed.
  return { state: findings.some(({ severity }) => severity === "error") ? null : state, findings };
}

export function refreshResource(
  resource: Resource,
  current: ObjectValue | null,
  call: Call,
): ObjectValue | null {
  if (!current) return null;
  const state = objectValue(Object.entries(current));
  resource.refresh?.(state, call);
  return state;
}

export function readDataSource(source: DataSource, config: ObjectValue, call: Call): Outcome {
  const state = planValue(source, config, null);
  for (const [name, value] of Object.entries(state)) if (value === UNKNOWN) state[name] = null;
  const findings = source.read(state, call);
  return { state: findings.some(({ severity }) => severity === "error") ? null : state, findings };
}

/**
 * Brings a stored state, perhaps of another release of the provider, into today's shape: what is not known any more
 * is dropped; what is missing becomes null, or its default, which is what the platform took its absence for.
 *
 * @param json the state's attributes as Terraform stores them
 * @throws {ProviderError} ERR_PROVIDER_VALUE
 */
export function upgradeState(resource: Resource, json: unknown): ObjectValue | null {
  const value = valueFromJson(json, blockType(resource), "state");
  return isObject(value) ? withDefaults(resource, value) : null;
}

function withDefaults(block: Block, value: ObjectValue): ObjectValue {
  const out = objectValue(Object.entries(value));
  for (const [name, attribute] of Object.entries(block.attributes)) {
    if (out[name] === null && attribute.default !== undefined) out[name] = attribute.default;
    if (out[name] === null && attribute.derive) out[name] = attribute.derive(out);
  }
  for (const [name, nested] of Object.entries(block.blocks ?? {})) {
    const items = out[name];
    if (Array.isArray(items))
      out[name] = items.map((item) => (isObject(item) ? withDefaults(nested.block, item) : item));
  }
  return out;
}
