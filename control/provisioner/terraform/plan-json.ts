// The parts of `terraform show -json` that we read. Pure.
export interface JsonResource {
  address: string;
  mode: "managed" | "data";
  type: string;
  name: string;
  values?: Record<string, unknown> | null;
}

export interface JsonModule {
  resources?: JsonResource[];
  child_modules?: JsonModule[];
}

export interface ShownPlan {
  prior_state?: { values?: { root_module?: JsonModule } };
  planned_values?: { root_module?: JsonModule };
  configuration?: {
    root_module?: {
      variables?: Record<string, { default?: unknown; description?: string; sensitive?: boolean }>;
    };
  };
}

export interface ShownState {
  values?: { root_module?: JsonModule };
}

/** Resources of a module and all modules below it. */
export function flatten(module: JsonModule | undefined): JsonResource[] {
  if (typeof module !== "object" || module === null) return [];
  return [...listOf(module.resources).filter(isResource), ...listOf(module.child_modules).flatMap(flatten)];
}

/** An entry without its names is nothing we could speak of: it is left out. */
function isResource(value: unknown): value is JsonResource {
  return (
    isRecord(value) &&
    typeof value["address"] === "string" &&
    typeof value["type"] === "string" &&
    typeof value["name"] === "string"
  );
}

const listOf = <T>(value: readonly T[] | undefined): readonly T[] => (Array.isArray(value) ? value : []);

/**
 * What a plan knows: data sources already read, and everything planned. A data source whose read waits for the
 * apply is in both or only among the planned, with what is known of it.
 */
export function planResources(plan: ShownPlan): JsonResource[] {
  const all = new Map<string, JsonResource>();
  for (const resource of flatten(plan?.prior_state?.values?.root_module))
    if (resource.mode === "data") all.set(resource.address, resource);
  for (const resource of flatten(plan?.planned_values?.root_module)) all.set(resource.address, resource);
  return [...all.values()];
}

export function stateResources(state: ShownState): JsonResource[] {
  return flatten(state?.values?.root_module);
}

/** Typed reads of a resource's values: what is absent, null or unknown reads as the fallback. */
export class Values {
  #values: Record<string, unknown>;
  constructor(values: unknown) {
    this.#values = isRecord(values) ? values : {};
  }

  has(name: string): boolean {
    return this.#values[name] !== undefined && this.#values[name] !== null;
  }
  string(name: string, fallback = ""): string {
    const value = this.#values[name];
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    return typeof value === "string" ? value : fallback;
  }
  number(name: string, fallback = 0): number {
    const value = this.#values[name];
    const number = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
    return typeof number === "number" && Number.isFinite(number) ? number : fallback;
  }
  boolean(name: string, fallback = false): boolean {
    const value = this.#values[name];
    return typeof value === "boolean" ? value : fallback;
  }
  /** A map of strings; other values are printed. */
  strings(name: string): Record<string, string> {
    const value = this.#values[name];
    if (!isRecord(value)) return {};
    return Object.fromEntries(
      Object.entries(value)
        .filter(([, item]) => item !== null && item !== undefined)
        .map(([key, item]) => [key, typeof item === "string" ? item : JSON.stringify(item)]),
    );
  }
  /** Nested blocks of a name, in order. */
  blocks(name: string): Values[] {
    const value = this.#values[name];
    return Array.isArray(value) ? value.filter(isRecord).map((item) => new Values(item)) : [];
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
