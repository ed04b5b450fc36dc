// The language of the schema tables (resources.ts, data-sources.ts): what a block holds, which values are
// allowed, and how it is told to Terraform.
import type { ObservedParameter } from "./parameter.ts";
import { Block as BlockMessage, NESTING_LIST, NESTING_SET, Schema as SchemaMessage } from "./tfplugin5.ts";
import type { ObjectType, ObjectValue, Type, Value } from "./value.ts";

/** Something to tell the template's author. `path`: names and list indexes from the block's top. */
export interface Finding {
  severity: "error" | "warning";
  summary: string;
  detail: string;
  path: readonly (string | number)[];
}

/** A check of one known, non-null value. @returns what is wrong, in words that say what to write instead */
export type Check = (value: string | number) => { severity: Finding["severity"]; detail: string }[];

export interface Attribute {
  type: Type;
  /** The older plugin SDK's int: `type` is number, fractions are refused. */
  integer?: true;
  mode: "required" | "optional" | "computed" | "optional-computed";
  sensitive?: true;
  deprecated?: true;
  /** Taken when the configuration says nothing. Never checked itself. */
  default?: string | number | boolean;
  check?: Check;
  /** A computed attribute that follows from its block's configuration, known as soon as that is. */
  derive?: (config: ObjectValue) => Value;
  /** A change is no reason to replace the resource. */
  changeable?: true;
}

export interface Nested {
  nesting: "list" | "set";
  minItems?: number;
  maxItems?: number;
  block: Block;
  /** What the platform takes an absent block for; giving exactly that is no change. */
  assumed?: ObjectValue;
}

export interface Block {
  attributes: Record<string, Attribute>;
  blocks?: Record<string, Nested>;
  /** Checks across attributes; unknown values must be passed over. */
  validate?: (config: ObjectValue) => Finding[];
}

/** What a create, refresh or read may use beside its configuration. */
export interface Call {
  env: ReadonlyMap<string, string>;
  /** The deployment's access URL, as configured or from the environment. */
  accessUrl: string;
  agentTokens: "keep" | "rotate";
  /** Turn a parameter's invalid value into a warning, so that one does not hide the others. */
  collect: boolean;
  newId(): string;
  observe(parameter: ObservedParameter): void;
}

export interface Resource extends Block {
  /** Fills computed attributes of a resource about to exist; `state` has its `id`, defaults and derived values. */
  create?: (state: ObjectValue, call: Call) => Finding[];
  /** Brings the computed attributes of an existing resource up to date. */
  refresh?: (state: ObjectValue, call: Call) => void;
}

export interface DataSource extends Block {
  /** Fills the computed attributes; `state` has configuration, defaults and derived values. */
  read(state: ObjectValue, call: Call): Finding[];
}

type Extra = Omit<Partial<Attribute>, "mode" | "type">;
const simple = (type: Type, base: Extra) => ({
  required: (extra: Extra = {}): Attribute => ({ type, mode: "required", ...base, ...extra }),
  optional: (extra: Extra = {}): Attribute => ({ type, mode: "optional", ...base, ...extra }),
  computed: (extra: Extra = {}): Attribute => ({ type, mode: "computed", ...base, ...extra }),
  optionalComputed: (extra: Extra = {}): Attribute => ({
    type,
    mode: "optional-computed",
    ...base,
    ...extra,
  }),
});
export const str = simple("string", {});
export const int = simple("number", { integer: true });
export const bool = simple("bool", {});
export const strMap = simple(["map", "string"], {});
export const strList = simple(["list", "string"], {});

/** The `id` every type has unless it says otherwise, as the older SDK adds it. */
export const implicitId = (): Attribute => str.optionalComputed({ changeable: true });

export function error(
  detail: string,
  path: Finding["path"] = [],
  summary = "Invalid configuration",
): Finding {
  return { severity: "error", summary, detail, path };
}

export function warning(
  detail: string,
  path: Finding["path"] = [],
  summary = "Questionable configuration",
): Finding {
  return { severity: "warning", summary, detail, path };
}

/** The type of a block's values: every attribute and block by name. */
export function blockType(block: Block): ["object", ObjectType] {
  const fields: ObjectType = {};
  for (const [name, attribute] of Object.entries(block.attributes)) fields[name] = attribute.type;
  for (const [name, nested] of Object.entries(block.blocks ?? {}))
    fields[name] = [nested.nesting, blockType(nested.block)];
  return ["object", fields];
}

/**
 * A schema as Terraform wants to read it. Attributes of resources that have a default are told as optional *and*
 * computed: Terraform only then accepts a plan that fills them. It has no such check for data sources.
 */
export function encodeSchema(block: Block, kind: "provider" | "resource" | "data"): Uint8Array {
  return SchemaMessage.encode({ version: kind === "resource" ? 1 : 0, block: encodeBlock(block, kind) });
}

function encodeBlock(block: Block, kind: "provider" | "resource" | "data"): Uint8Array {
  const attributes = Object.entries(block.attributes).map(([name, attribute]) => ({
    name,
    type: new TextEncoder().encode(JSON.stringify(attribute.type)),
    required: attribute.mode === "required",
    optional: attribute.mode.startsWith("optional"),
    computed: attribute.mode.endsWith("computed") || (kind === "resource" && attribute.default !== undefined),
    sensitive: attribute.sensitive ?? false,
    deprecated: attribute.deprecated ?? false,
  }));
  const blockTypes = Object.entries(block.blocks ?? {}).map(([typeName, nested]) => ({
    typeName,
    block: encodeBlock(nested.block, kind),
    nesting: nested.nesting === "list" ? NESTING_LIST : NESTING_SET,
    minItems: nested.minItems ?? 0,
    maxItems: nested.maxItems ?? 0,
  }));
  return BlockMessage.encode({ attributes, blockTypes });
}
