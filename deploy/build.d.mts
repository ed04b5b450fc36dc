/** Packages that stay in node_modules. */
export const EXTERNAL: string[];

export interface Built {
  outdir: string;
  /** `coder ssh`: the name of its script, without .js, and the source files it is made of. */
  ssh: { name: string; inputs: string[] };
}

/** @param options.outdir default: dist/ @returns undefined when nothing had to be done */
export function build(options?: { force?: boolean; outdir?: string }): Promise<Built | undefined>;
