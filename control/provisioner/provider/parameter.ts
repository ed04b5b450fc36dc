// coder_parameter: which value a parameter has, and whether that value is allowed. The order of the checks is part
// of the contract, since only the first failure is told:
//   1. ephemeral needs mutable, and a default          5. with options: the value is one of them
//   2. the form fits the type and the options          6. the validation block
//   3. options: unique names and values, of the type   7. the value is of the declared type
//   4. no value and no validation block: "" and done
import type { TemplateParameter } from "../protocol.ts";
import { ProviderError } from "./errors.ts";
import { isGoFloat, parseGoBool, parseGoInt } from "./go-syntax.ts";
import { compileRegex, type Regex } from "./regex.ts";
import { error, type Finding } from "./schema.ts";
import { knownItems, type ObjectValue, textOf } from "./value.ts";

export const PARAMETER_TYPES = ["string", "number", "bool", "list(string)"] as const;
export type ParameterType = (typeof PARAMETER_TYPES)[number];

/** Which forms fit a type, with options and without; the first is taken when the template names none. */
const FORM_TYPES: Record<ParameterType, { options: string[]; free: string[] }> = {
  string: { options: ["radio", "dropdown"], free: ["input", "textarea"] },
  number: { options: ["radio", "dropdown"], free: ["input", "slider"] },
  bool: { options: ["radio", "dropdown"], free: ["checkbox", "switch"] },
  "list(string)": { options: ["radio", "multi-select"], free: ["tag-select"] },
};

/** Every form there is. `error` fits no type: the platform shows it when a parameter can't be shown. */
export const ALL_FORM_TYPES = [
  "",
  ...new Set(Object.values(FORM_TYPES).flatMap(({ options, free }) => [...options, ...free])),
  "error",
];

/** A parameter as the template declares it. */
export interface ParameterDeclaration
  extends Omit<TemplateParameter, "required" | "defaultValue" | "validation"> {
  /** Undefined: none, so that the user must give a value. */
  default: string | undefined;
  /** Undefined: no validation block. */
  validation: TemplateParameter["validation"] | undefined;
}

export interface ParameterOutcome {
  value: string;
  /** The form in the end: the one named, or the default of the type. */
  formType: string;
  /** At most one, except for options of the wrong type. */
  problems: Finding[];
  /** Whether the problem lies in the value, which the user can change, rather than in the template. */
  isValueProblem: boolean;
}

/** What one evaluation found, for whoever shows the parameter as a form. */
export interface ObservedParameter extends TemplateParameter {
  value: string;
  problems: string[];
}

/** Reads the attributes of a coder_parameter, all known by the time Terraform asks. */
export function declarationOf(config: ObjectValue): ParameterDeclaration {
  const validation = knownItems(config.validation)[0];
  const limit = (name: "min" | "max") =>
    typeof validation?.[name] === "number" ? validation[name] : undefined;
  return {
    name: textOf(config.name),
    displayName: textOf(config.display_name),
    description: textOf(config.description),
    type: PARAMETER_TYPES.find((type) => type === config.type) ?? "string",
    formType: textOf(config.form_type),
    styling: textOf(config.styling, "{}"),
    mutable: config.mutable === true,
    ephemeral: config.ephemeral === true,
    default: typeof config.default === "string" ? config.default : undefined,
    icon: textOf(config.icon),
    order: typeof config.order === "number" ? config.order : 0,
    options: knownItems(config.option).map((option) => ({
      name: textOf(option.name),
      description: textOf(option.description),
      value: textOf(option.value),
      icon: textOf(option.icon),
    })),
    validation: validation && {
      regex: textOf(validation.regex),
      error: textOf(validation.error),
      monotonic: textOf(validation.monotonic),
      min: limit("min"),
      max: limit("max"),
    },
  };
}

export function observed(declared: ParameterDeclaration, outcome: ParameterOutcome): ObservedParameter {
  const { default: defaultValue, validation, ...rest } = declared;
  return {
    ...rest,
    formType: outcome.formType,
    required: defaultValue === undefined,
    defaultValue: defaultValue ?? "",
    validation: validation ?? { regex: "", error: "", monotonic: "" },
    value: outcome.value,
    problems: outcome.problems.map(({ summary, detail }) => (detail ? `${summary}: ${detail}` : summary)),
  };
}

/** @param given the build's value, if it has one: an empty text is a value. `previous`: the build before's */
export function evaluateParameter(
  declared: ParameterDeclaration,
  given: string | undefined,
  previous: string | undefined,
): ParameterOutcome {
  const { type, options, validation } = declared;
  const forms = FORM_TYPES[type][options.length > 0 ? "options" : "free"];
  const formType = declared.formType || forms[0];
  const value = given ?? declared.default ?? "";
  const outcome = (problems: Finding[], isValueProblem = false): ParameterOutcome => ({
    value,
    formType,
    problems,
    isValueProblem: isValueProblem && problems.length > 0,
  });

  if (declared.ephemeral && !declared.mutable)
    return outcome([
      error(
        "An ephemeral parameter must also be mutable.",
        ["ephemeral"],
        "Parameter can't be immutable and ephemeral",
      ),
    ]);
  if (declared.ephemeral && declared.default === undefined)
    return outcome([
      error("Add a default.", ["ephemeral"], "Ephemeral parameter requires the default property"),
    ]);
  if (!forms.includes(formType))
    return outcome([
      error(
        `A parameter of type ${type} ${options.length > 0 ? "with" : "without"} options can be shown as ` +
          `${forms.join(" or ")}, not as ${formType}.`,
        ["form_type"],
        "Invalid form_type for parameter",
      ),
    ]);

  // A multi-select's options are the elements, its value is the JSON list of those chosen.
  const isMultiSelect = formType === "multi-select";
  const optionProblems = checkOptions(declared, isMultiSelect ? "string" : type);
  if (optionProblems.length > 0) return outcome(optionProblems);
  if (!validation && given === undefined && declared.default === undefined) return outcome([]);

  const isDefault = given === undefined && declared.default !== undefined;
  const subject = isDefault ? "Default value" : "Value";
  const path = isDefault ? ["default"] : [];
  const wrongOption = checkMembership(declared, value, isMultiSelect);
  if (wrongOption) return outcome([error(wrongOption, path, `${subject} must be a valid option`)], true);
  if (validation) {
    const problem = checkValidation(type, validation, value, previous);
    const summary = `Invalid parameter ${subject.toLowerCase()} according to 'validation' block`;
    if (problem) return outcome([error(problem.detail, path, summary)], problem.inValue);
  }
  const misfit = typeProblem(type, value);
  if (misfit) return outcome([error(misfit, path, `Parameter value is not of type "${type}"`)], true);
  return outcome([]);
}

function checkOptions({ options }: ParameterDeclaration, type: ParameterType): Finding[] {
  const names = new Set<string>();
  const values = new Set<string>();
  const misfits: Finding[] = [];
  for (const [index, { name, value }] of options.entries()) {
    if (names.has(name))
      return [
        error(
          `More than one is called ${quote(name)}.`,
          ["option", index, "name"],
          "Option names must be unique",
        ),
      ];
    if (values.has(value))
      return [
        error(
          `More than one has the value ${quote(value)}.`,
          ["option", index, "value"],
          "Option values must be unique",
        ),
      ];
    const problem = typeProblem(type, value);
    if (problem)
      misfits.push(
        error(problem, ["option", index, "value"], `Option ${quote(name)} is not of type "${type}"`),
      );
    names.add(name);
    values.add(value);
  }
  return misfits;
}

function checkMembership(
  { options }: ParameterDeclaration,
  value: string,
  isMultiSelect: boolean,
): string | undefined {
  if (options.length === 0) return undefined;
  const allowed = new Set(options.map((option) => option.value));
  if (!isMultiSelect) {
    if (allowed.has(value)) return undefined;
    return value === ""
      ? "The value is empty: set it, or give the parameter a default."
      : `${quote(value)} is not among the options.`;
  }
  const chosen = parseStringList(value);
  if (!chosen) return `${quote(value)} is not a JSON list of strings.`;
  const missing = chosen.filter((item) => !allowed.has(item));
  return missing.length > 0 ? `Not among the options: ${missing.map(quote).join(", ")}.` : undefined;
}

function checkValidation(
  type: ParameterType,
  validation: TemplateParameter["validation"],
  value: string,
  previous: string | undefined,
): { detail: string; inValue: boolean } | undefined {
  const inTemplate = (detail: string) => ({ detail, inValue: false });
  const inValue = (detail: string) => ({ detail, inValue: true });
  const { min, max, monotonic, regex } = validation;
  if (type !== "number") {
    if (min !== undefined) return inTemplate(`a min cannot be specified for a ${type} type`);
    if (max !== undefined) return inTemplate(`a max cannot be specified for a ${type} type`);
    if (monotonic) return inTemplate(`monotonic can only be specified for the number type, not for ${type}`);
  }
  if (type !== "string" && regex) return inTemplate(`a regex cannot be specified for a ${type} type`);

  if (type === "bool")
    return value === "true" || value === "false" ? undefined : inValue('a bool must be "true" or "false"');
  if (type === "list(string)")
    return parseStringList(value) ? undefined : inValue(`${quote(value)} is not a JSON list of strings`);
  if (type === "string") {
    if (!regex) return undefined;
    const compiled = compile(regex);
    if (typeof compiled === "string") return inTemplate(compiled);
    if (!validation.error)
      return inTemplate("a regex needs an error: the sentence to show when it does not match");
    if (compiled.matches(value)) return undefined;
    return inValue(`${validation.error} (value ${quote(value)} does not match ${quote(regex)})`);
  }

  const custom =
    validation.error && fill(validation.error, { min: `${min ?? 0}`, max: `${max ?? 0}`, value });
  const number = parseGoInt(value);
  if (number === undefined) return inValue(custom || `value ${quote(value)} is not a whole number`);
  if (min !== undefined && number < min)
    return inValue(custom || `value ${number} is less than the minimum ${min}`);
  if (max !== undefined && number > max)
    return inValue(custom || `value ${number} is more than the maximum ${max}`);
  if (monotonic && monotonic !== "increasing" && monotonic !== "decreasing")
    return inTemplate('monotonic must be "increasing" or "decreasing"');
  // A previous value that is no number is passed over: the user could never get past it.
  const before = previous === undefined ? undefined : parseGoInt(previous);
  if (before === undefined) return undefined;
  if (monotonic === "increasing" && number < before)
    return inValue(`value ${number} must be equal or greater than the previous value ${before}`);
  if (monotonic === "decreasing" && number > before)
    return inValue(`value ${number} must be equal or lower than the previous value ${before}`);
  return undefined;
}

function compile(regex: string): Regex | string {
  try {
    return compileRegex(regex);
  } catch (problem) {
    if (problem instanceof ProviderError)
      return `the regex ${quote(regex)} can't be used: ${problem.message}`;
    throw problem;
  }
}

const fill = (text: string, values: Record<string, string>) =>
  text.replace(/\{(min|max|value)\}/g, (_, name: string) => values[name]);

function typeProblem(type: ParameterType, value: string): string | undefined {
  if (type === "number" && !isGoFloat(value)) return `${quote(value)} is not a number`;
  if (type === "bool" && parseGoBool(value) === undefined) return `${quote(value)} is not a bool`;
  if (type === "list(string)" && !parseStringList(value))
    return `${quote(value)} is not a JSON list of strings`;
  return undefined;
}

function parseStringList(text: string): string[] | undefined {
  try {
    const list: unknown = JSON.parse(text);
    return Array.isArray(list) && list.every((item) => typeof item === "string") ? list : undefined;
  } catch {
    return undefined;
  }
}

const quote = (text: string) => JSON.stringify(text);
