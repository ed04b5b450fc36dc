import os from "node:os";

export interface Row {
  what: string;
  n: number;
  ours: number;
  control: number;
  controlName: string;
  /** ours / control, of medians or pair by pair. */
  ratio: number;
}

export const hardware = (): string =>
  `${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores, ${Math.round(os.totalmem() / 2 ** 30)} GiB, Node ${process.version}, ${os.type()} ${os.release()}`;

/** Nearest rank. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

const round = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toFixed(3));

export function print(result: { title: string; hardware: string; rows: readonly Row[] }): void {
  console.log(`${result.title}\n${result.hardware}`);
  for (const { what, n, ours, control, controlName, ratio } of result.rows)
    console.log(
      `  ${what}, n = ${n}: ours ${round(ours)}, ${controlName} ${round(control)}, ratio ${ratio.toFixed(2)}`,
    );
}
