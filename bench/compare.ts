// A result of now beside the last committed one, and results as tables for a README.
import { figure, type Hardware, type SavedResult } from "./report.ts";

/** A change by less than this is what the same code shows from run to run. */
const NOISE = 0.1;

const machineOf = ({ cpu, cores, memoryGiB, node }: Hardware): string =>
  `${cpu}, ${cores} cores, ${memoryGiB} GiB, Node ${node}`;

/**
 * Lines "was X, now Y (+n %)", one a row. Where both have a control the ratio to it is compared, since a busy or another
 * machine moves both; else the median.
 */
export function compare(now: SavedResult, before: SavedResult | undefined): string[] {
  if (!before) return ["no committed result to compare with"];
  const lines = [`since the result of ${before.date}:`];
  if (machineOf(before.hardware) !== machineOf(now.hardware))
    lines.push(`that was another machine: ${machineOf(before.hardware)}`);
  for (const row of now.rows) {
    const old = before.rows.find(({ id }) => id === row.id);
    if (!old) {
      lines.push(`${row.what}: new`);
      continue;
    }
    const ratios = row.ratio !== undefined && old.ratio !== undefined ? [old.ratio, row.ratio] : undefined;
    const [was, is] = ratios ?? [old.ours.median, row.ours.median];
    const unit = ratios ? " x control" : ` ${row.unit}`;
    const change = is / was - 1;
    const worse = row.better === "lower" ? change > NOISE : change < -NOISE;
    const better = row.better === "lower" ? change < -NOISE : change > NOISE;
    const sign = change >= 0 ? "+" : "";
    lines.push(
      `${row.what}: was ${figure(was)}, now ${figure(is)}${unit} (${sign}${(change * 100).toFixed(0)} %)${worse ? ", WORSE" : better ? ", better" : ""}`,
    );
  }
  for (const old of before.rows)
    if (!now.rows.some(({ id }) => id === old.id)) lines.push(`${old.what}: not measured this time`);
  return lines;
}

const cells = (values: readonly string[]): string => `| ${values.join(" | ")} |`;

function tableOf({ group, title, date, hardware, rows }: SavedResult): string {
  return [
    `**\`${group}\`**: ${title}. ${machineOf(hardware)}, ${date}`,
    "",
    cells(["what", "n", "median (p99)", "control", "ratio", "goal"]),
    cells(["---", "---", "---", "---", "---", "---"]),
    ...rows.map(({ what, unit, n, ours, control, ratio, goal }) =>
      cells([
        what,
        n.toLocaleString("en"),
        `${figure(ours.median)}${n > 1 ? ` (${figure(ours.p99)})` : ""} ${unit}`,
        control ? `${figure(control.median)} (${control.name})` : "",
        ratio === undefined ? "" : figure(ratio),
        goal ? `${goal.text}: ${goal.holds ? "holds" : "**missed**"}` : "",
      ]),
    ),
  ].join("\n");
}

const START = "<!-- results: written by npm run bench -- --save -->";
const END = "<!-- end of results -->";

/** The text with the tables of these results between its two markers. */
export function withTables(text: string, results: readonly SavedResult[]): string {
  const [from, to] = [text.indexOf(START), text.indexOf(END)];
  if (from < 0 || to < from) throw new Error("bench/README.md lost the markers around its results");
  const tables = results.map((result) => tableOf(result)).join("\n\n");
  return `${text.slice(0, from)}${START}\n\n${tables}\n\n${text.slice(to)}`;
}
