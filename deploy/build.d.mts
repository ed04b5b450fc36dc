import type { Metafile } from "esbuild";

export const EXTERNAL: string[];
export function build(options?: { force?: boolean }): Promise<Metafile | undefined>;
