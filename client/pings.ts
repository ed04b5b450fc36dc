// What `coder ping` counts and says. Pure.

export interface Reply {
  rttMs: number;
  /** For people: "via relay coder (999)". */
  via: string;
  path: string;
  region: number;
}

/** Numbers in ms, undefined without a reply. */
export interface Summary {
  sent: number;
  received: number;
  lost: number;
  min_ms?: number;
  avg_ms?: number;
  median_ms?: number;
  max_ms?: number;
}

export const WHY_RELAYED =
  "Traffic goes through a relay, end-to-end encrypted: direct paths are not built yet, so nothing on your side is wrong.";

export function formatReply(name: string, { via, rttMs }: Reply, number: number, count: number): string {
  return `pong from ${name} ${via} in ${rttMs.toFixed(2)} ms (${number}${count ? `/${count}` : ""})`;
}

export function summarize(replies: readonly { rttMs: number }[], lost: number): Summary {
  const sorted = replies.map(({ rttMs }) => rttMs).sort((a, b) => a - b);
  const base = { sent: sorted.length + lost, received: sorted.length, lost };
  if (sorted.length === 0) return base;
  const round = (ms: number) => Number(ms.toFixed(3));
  return {
    ...base,
    min_ms: round(sorted[0]),
    avg_ms: round(sorted.reduce((sum, ms) => sum + ms, 0) / sorted.length),
    median_ms: round(sorted[sorted.length >> 1]),
    max_ms: round(sorted[sorted.length - 1]),
  };
}

export function formatSummary({ received, lost, ...ms }: Summary): string {
  const counts = `${received} ${received === 1 ? "reply" : "replies"}, ${lost} lost`;
  if (ms.avg_ms === undefined) return `${counts}\n`;
  const list = [ms.min_ms, ms.avg_ms, ms.median_ms, ms.max_ms].map((value) => value?.toFixed(2)).join(" / ");
  return `${counts}; round trip min / avg / median / max ${list} ms\n`;
}
