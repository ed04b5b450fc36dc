export interface MochaResult {
  passed: number;
  failed: number;
  skipped: number;
  ok: boolean;
  remarks: string[];
}
export function runMocha(
  args: readonly string[],
  options: {
    cwd: string;
    env: NodeJS.ProcessEnv;
    resultFile: string;
    limitMs: number;
    abortGraceMs?: number;
    output?: "inherit" | "ignore";
    onStart?: (stop: () => void) => void;
  },
): Promise<MochaResult>;
