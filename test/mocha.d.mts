export interface MochaResult {
  passed: number;
  failed: number;
  skipped: number;
  ok: boolean;
  remarks: string[];
  failures: { file: string; title: string; message: string }[];
  times: {
    files: { file: string; wallMs: number; cpuMs: number }[];
    slowest: { file: string; title: string; wallMs: number }[];
  };
}
interface CommonOptions {
  cwd: string;
  env: NodeJS.ProcessEnv;
  limitMs: number;
  abortGraceMs?: number;
  onStart?: (stop: () => void) => void;
}
export function runMocha(
  args: readonly string[],
  options: CommonOptions & { resultFile: string; output?: "inherit" | "ignore" | number },
): Promise<MochaResult>;
export function runBatches(
  batches: readonly { name: string; files: readonly string[] }[],
  options: CommonOptions & {
    folder: string;
    lanes: number;
    print: (text: string) => void;
    args?: readonly string[];
  },
): Promise<MochaResult>;
