export interface Batch {
  name: string;
  files: string[];
  expectedMs: number;
}
export function listSpecs(root: string): string[];
export function readTimes(file: string): Record<string, number>;
export function makeBatches(
  specs: readonly string[],
  times: Record<string, number>,
  batchMs?: number,
): Batch[];
