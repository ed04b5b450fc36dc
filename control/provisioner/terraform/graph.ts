// Addresses and the dependency graph as `terraform graph -type=plan` prints it. Pure.

/**
 * The address without instance keys, as graph nodes are labelled: `module.m["a.b[0]"].coder_app.x[1]` becomes
 * `module.m.coder_app.x`. Keys are strings that may hold dots and brackets, so quotes are respected.
 */
export function withoutKeys(address: string): string {
  return address.replace(/\[(?:"(?:[^"\\]|\\.)*"|[^\]"]*)\]/g, "");
}

/** The key of the last instance in an address (`[0]`, `["x"]`), "" when it has none. */
export function lastKey(address: string): string {
  return /(\[(?:"(?:[^"\\]|\\.)*"|[^\]"]*)\])$/.exec(address)?.[1] ?? "";
}

/** Which nodes a node depends on, and the other way round. Labels are addresses without keys. */
export class DependencyGraph {
  #dependencies = new Map<string, Set<string>>();
  #dependents = new Map<string, Set<string>>();

  /** Reads the DOT text; lines that aren't edges are skipped. */
  static parse(dot: string): DependencyGraph {
    const graph = new DependencyGraph();
    const edge = /^\s*"((?:[^"\\]|\\.)*)" -> "((?:[^"\\]|\\.)*)"/gm;
    for (const [, from, to] of dot.matchAll(edge)) {
      const [a, b] = [nodeLabel(from!), nodeLabel(to!)];
      // Providers and the root depend on, or are needed by, everything: through them all is related to all.
      if (a !== undefined && b !== undefined && a !== b) graph.#add(a, b);
    }
    return graph;
  }

  /**
   * Breadth first from a node; nodes that aren't resources (variables, locals, outputs, modules) cost no step.
   *
   * @param direction "up": what depends on it; "down": what it depends on
   * @param pick whether a label is wanted; the search does not go beyond one
   * @returns wanted labels with their distance, nearest first, then by label
   */
  nearest(
    label: string,
    direction: "up" | "down",
    pick: (label: string) => boolean,
  ): { label: string; depth: number }[] {
    const edges = direction === "up" ? this.#dependents : this.#dependencies;
    const found: { label: string; depth: number }[] = [];
    const seen = new Set([label]);
    let level = [label];
    for (let depth = 1; level.length > 0; depth++) {
      const next: string[] = [];
      // `level` grows while it is walked: free nodes belong to the same depth as what led to them.
      for (let i = 0; i < level.length; i++) {
        for (const neighbour of edges.get(level[i]!) ?? []) {
          if (seen.has(neighbour)) continue;
          seen.add(neighbour);
          if (!isResource(neighbour)) level.push(neighbour);
          else if (pick(neighbour)) found.push({ label: neighbour, depth });
          else next.push(neighbour);
        }
      }
      level = next;
    }
    return found.sort((a, b) => a.depth - b.depth || (a.label < b.label ? -1 : 1));
  }

  #add(from: string, to: string): void {
    for (const [map, key, value] of [
      [this.#dependencies, from, to],
      [this.#dependents, to, from],
    ] as const) {
      const set = map.get(key);
      if (set) set.add(value);
      else map.set(key, new Set([value]));
    }
  }
}

/** `[root] module.m.var.x (expand)` -> `module.m.var.x`; undefined for providers and the root. */
function nodeLabel(raw: string): string | undefined {
  const name = raw
    .replace(/\\(.)/g, "$1")
    .replace(/^\[root\] /, "")
    .replace(/ \([a-z ,]+\)$/, "");
  return name === "root" || /^(module\..*\.)?provider\[/.test(name) ? undefined : withoutKeys(name);
}

function isResource(label: string): boolean {
  const own = label.replace(/^(?:module\.[^.]+\.?)+/, "");
  return own !== "" && !/^(var|local|output)\./.test(own);
}
