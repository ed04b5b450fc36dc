// coder_workspace_preset: a named set of parameter values, and how many workspaces to build ahead of time for it.
import { atLeast, atMostCharacters, every, nonEmpty, onlyItem, url } from "./checks.ts";
import { schedulesOverlap, standardCronProblem } from "./cron.ts";
import { bool, type Check, type DataSource, error, type Finding, int, str, strMap } from "./schema.ts";
import { isTimeZone } from "./time-zone.ts";
import { knownItems, type ObjectValue, textOf } from "./value.ts";

const HOUR_S = 3600;
const YEAR_S = 365 * 24 * HOUR_S;

export const workspacePreset: DataSource = {
  attributes: {
    id: str.computed(),
    name: str.required({ check: nonEmpty }),
    description: str.optional({ check: atMostCharacters(128) }),
    icon: str.optional({ check: every(url, atMostCharacters(256)) }),
    default: bool.optional({ default: false }),
    parameters: strMap.optional(),
  },
  blocks: {
    prebuilds: {
      nesting: "set",
      maxItems: 1,
      block: {
        attributes: { instances: int.required({ check: atLeast(0) }) },
        blocks: {
          expiration_policy: {
            nesting: "set",
            maxItems: 1,
            block: { attributes: { ttl: int.required({ check: lifetime }) } },
          },
          scheduling: {
            nesting: "list",
            maxItems: 1,
            block: {
              attributes: { timezone: str.required({ check: timeZone }) },
              blocks: {
                schedule: {
                  nesting: "list",
                  minItems: 1,
                  block: {
                    attributes: { cron: str.required({ check: hourlyCron }), instances: int.required() },
                  },
                },
              },
            },
          },
        },
      },
    },
  },
  validate: overlaps,
  read(state) {
    state.id = state.name;
    return [];
  },
};

const wrong = (detail: string): ReturnType<Check> => [{ severity: "error", detail }];

function lifetime(value: string | number): ReturnType<Check> {
  const seconds = Number(value);
  if (seconds === 0 || (seconds >= HOUR_S && seconds <= YEAR_S)) return [];
  return wrong(`expected 0 (never) or ${HOUR_S} to ${YEAR_S} seconds, got ${value}`);
}

function timeZone(value: string | number): ReturnType<Check> {
  return isTimeZone(String(value))
    ? []
    : wrong(`${JSON.stringify(value)} is not a time zone such as "Europe/Berlin"`);
}

/** Workspaces are made ready by the hour, so the minute has to stay open. */
function hourlyCron(value: string | number): ReturnType<Check> {
  const spec = String(value);
  const problem = standardCronProblem(spec);
  if (problem) return wrong(`${JSON.stringify(spec)} is not a cron expression: ${problem}`);
  return spec.trim().startsWith("* ") ? [] : wrong(`the minute of ${JSON.stringify(spec)} must be "*"`);
}

function overlaps(config: ObjectValue): Finding[] {
  const prebuilds = onlyItem(config, "prebuilds");
  const scheduling = prebuilds && onlyItem(prebuilds, "scheduling");
  const crons = knownItems(scheduling?.schedule)
    .map((schedule) => textOf(schedule.cron))
    .filter((cron) => cron && !standardCronProblem(cron));
  const problems: Finding[] = [];
  for (const [i, one] of crons.entries())
    for (const other of crons.slice(i + 1)) {
      const answer = schedulesOverlap(one, other);
      const detail = typeof answer === "string" ? answer : `schedules overlap: ${one} and ${other}`;
      if (answer) problems.push(error(detail, ["prebuilds"]));
    }
  return problems;
}
