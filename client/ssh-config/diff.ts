const CONTEXT_LINES = 3;

/**
 * What changes between two texts that differ in one place, in the manner of `diff -u`.
 *
 * @returns "" when nothing does
 */
export function unifiedDiff(name: string, before: string, after: string): string {
  if (before === after) return "";
  const [old, fresh] = [splitLines(before), splitLines(after)];
  let head = 0;
  while (head < old.length && head < fresh.length && old[head] === fresh[head]) head++;
  let tail = 0;
  while (
    tail < Math.min(old.length, fresh.length) - head &&
    old[old.length - 1 - tail] === fresh[fresh.length - 1 - tail]
  )
    tail++;
  const from = Math.max(0, head - CONTEXT_LINES);
  const contextBehind = Math.min(tail, CONTEXT_LINES);
  const removed = old.slice(head, old.length - tail);
  const added = fresh.slice(head, fresh.length - tail);
  const behind = old.slice(old.length - tail, old.length - tail + contextBehind);
  const count = (changed: string[]) => head - from + changed.length + contextBehind;
  const range = (length: number) => `${length === 0 ? from : from + 1},${length}`;
  return [
    `--- ${name}`,
    `+++ ${name}`,
    `@@ -${range(count(removed))} +${range(count(added))} @@`,
    ...old.slice(from, head).map((line) => ` ${line}`),
    ...removed.map((line) => `-${line}`),
    ...added.map((line) => `+${line}`),
    ...behind.map((line) => ` ${line}`),
    "",
  ].join("\n");
}

function splitLines(text: string): string[] {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  else lines.push("\\ No newline at end of file");
  return lines;
}
