// Which values a build's parameters have. Pure. Order of precedence: given now, the preset, the previous build,
// the template's default. Errors name the parameter, so that a client can show them beside its field.
import { runInNewContext } from "node:vm";
import type { RichParameterValue, TemplateParameter } from "../provisioner/protocol.ts";

export interface ParameterProblem {
  field: string;
  detail: string;
}

export interface ResolveInput {
  definitions: TemplateParameter[];
  given: RichParameterValue[];
  preset?: RichParameterValue[];
  /** Values of the previous build; absent for the first. */
  previous?: RichParameterValue[];
}

const asMap = (values: RichParameterValue[] = []): Map<string, string> =>
  new Map(values.map(({ name, value }) => [name, value]));

/** @returns values: one per definition, in their order. They are only good when there are no problems. */
export function resolveParameters(input: ResolveInput): {
  values: RichParameterValue[];
  problems: ParameterProblem[];
} {
  const given = asMap(input.given);
  const preset = asMap(input.preset);
  const previous = input.previous && asMap(input.previous);
  const problems: ParameterProblem[] = [];
  const known = new Set(input.definitions.map(({ name }) => name));
  for (const name of given.keys()) {
    if (!known.has(name)) problems.push({ field: name, detail: "The template has no such parameter." });
  }

  const values = input.definitions.flatMap((definition) => {
    const { name } = definition;
    const before = definition.ephemeral ? undefined : previous?.get(name);
    const wanted = given.get(name) ?? preset.get(name);
    if (before !== undefined && !definition.mutable) {
      if (given.has(name) && given.get(name) !== before)
        problems.push({
          field: name,
          detail: "The parameter can't be changed after the workspace was created.",
        });
      return [{ name, value: before }];
    }
    const value = wanted ?? before ?? (definition.required ? undefined : definition.defaultValue);
    if (value === undefined) {
      problems.push({ field: name, detail: "A value is required." });
      return [];
    }
    const detail = valueProblem(definition, value, before);
    if (detail) problems.push({ field: name, detail });
    return [{ name, value }];
  });
  return { values, problems };
}

function valueProblem(
  { type, formType, options, validation, required, defaultValue }: TemplateParameter,
  value: string,
  previous: string | undefined,
): string | undefined {
  // An optional parameter may stay at its default, whatever that is.
  if (!required && value === defaultValue) return undefined;
  if (options.length > 0) {
    const allowed = new Set(options.map((option) => option.value));
    const chosen = formType === "multi-select" || type === "list(string)" ? stringList(value) : [value];
    if (!chosen) return "The value must be a JSON array of strings.";
    const bad = chosen.find((item) => !allowed.has(item));
    if (bad !== undefined && !allowed.has(value))
      return `"${bad}" is not one of the options: ${[...allowed].join(", ")}.`;
    return undefined;
  }
  switch (type) {
    case "bool":
      return value === "true" || value === "false" ? undefined : 'The value must be "true" or "false".';
    case "list(string)":
      return stringList(value) ? undefined : "The value must be a JSON array of strings.";
    case "number":
      return numberProblem(validation, value, previous);
    case "string":
      return regexProblem(validation, value);
  }
}

function stringList(value: string): string[] | undefined {
  try {
    const parsed: unknown = JSON.parse(value);
    return Array.isArray(parsed) && parsed.every((item) => typeof item === "string") ? parsed : undefined;
  } catch {
    return undefined;
  }
}

function numberProblem(
  { min, max, monotonic, error }: TemplateParameter["validation"],
  value: string,
  previous: string | undefined,
): string | undefined {
  if (!/^-?\d+(\.\d+)?$/.test(value)) return "The value must be a number.";
  const number = Number(value);
  const custom = error
    .replaceAll("{min}", String(min ?? ""))
    .replaceAll("{max}", String(max ?? ""))
    .replaceAll("{value}", value);
  if (min !== undefined && number < min) return custom || `The value must be at least ${min}.`;
  if (max !== undefined && number > max) return custom || `The value must be at most ${max}.`;
  if (previous !== undefined && previous !== "") {
    if (monotonic === "increasing" && number < Number(previous))
      return `The value may only grow; it was ${previous}.`;
    if (monotonic === "decreasing" && number > Number(previous))
      return `The value may only shrink; it was ${previous}.`;
  }
  return undefined;
}

// The pattern is the template author's and Go's RE2, which can't backtrack; ours can, for ever. So it runs under a
// time limit, and one that JavaScript can't read or finish is left to the provider, which checks every value again.
const REGEX_TIMEOUT_MS = 50;

function regexProblem({ regex, error }: TemplateParameter["validation"], value: string): string | undefined {
  if (!regex) return undefined;
  try {
    const matches: unknown = runInNewContext(
      'new RegExp(regex, "u").test(value)',
      { regex, value },
      { timeout: REGEX_TIMEOUT_MS },
    );
    if (matches === true) return undefined;
  } catch {
    return undefined;
  }
  return error.replaceAll("{value}", value) || `The value must match ${regex}.`;
}
