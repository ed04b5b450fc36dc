// A session kept by an agent, as a line of a table. Pure: `now` is Unix ms.
import type { SessionSummary } from "../mesh/wire/forward.ts";
import { formatAge } from "./output.ts";

/** So long without a word is silence: a client says something every 20 s. */
const SILENT_MS = 45_000;
const SHORT_ID_CHARS = 8;
const MAX_RUNS_CHARS = 60;

function runs({ streams }: SessionSummary): string {
  const all = streams.map(({ what, service }) => what || service);
  const text = all.join(", ");
  return text.length > MAX_RUNS_CHARS ? `${text.slice(0, MAX_RUNS_CHARS - 1)}…` : text || "nothing";
}

export function sessionRow(session: SessionSummary, now: number): Record<string, string> {
  const { id, startedAt, lastHeardAt, resumeWindowMs, path, rttMs } = session;
  const isSilent = now - lastHeardAt > SILENT_MS;
  const untilMs = lastHeardAt + resumeWindowMs - now;
  return {
    id: id.slice(0, SHORT_ID_CHARS),
    started: `${formatAge(startedAt, now)} ago`,
    "last heard": isSilent ? `${formatAge(lastHeardAt, now)} ago` : "now",
    kept: isSilent
      ? `${untilMs > 0 ? `${formatAge(0, untilMs)} more` : "ending"}`
      : `${formatAge(0, resumeWindowMs)} if lost`,
    path: rttMs === undefined ? path : `${path}, ${rttMs.toFixed(1)} ms`,
    runs: runs(session),
  };
}
