import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { EXTERNAL } from "../deploy/build.mjs";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** What each folder may import of ours, beside itself; the reason says what breaks when the rule does. */
const ALLOWED: Record<string, { may: string[]; reason: string }> = {
  "mesh/wire": { may: [], reason: "formats are read by every other part and by second implementations" },
  "mesh/wireguard": { may: ["mesh/wire"], reason: "the protocol cores are pure and run in a browser" },
  "mesh/session": { may: ["mesh/wire"], reason: "the protocol cores are pure and run in a browser" },
  "mesh/path": { may: ["mesh/wire"], reason: "the protocol cores are pure and run in a browser" },
  "mesh/node": {
    may: ["mesh/wire", "mesh/wireguard", "mesh/session", "mesh/path"],
    reason: "the shell takes a relay and a coordinator as interfaces, so that it knows neither",
  },
  derp: { may: ["mesh"], reason: "a relay can be deployed alone" },
  coordinator: { may: ["mesh"], reason: "a coordinator knows nodes, not users or templates" },
  agent: {
    may: ["mesh", "derp/client", "coordinator/client", "control/contract"],
    reason: "an agent must stay small: it may not load a server",
  },
  client: {
    may: ["mesh", "derp/client", "coordinator/client", "control/contract"],
    reason: "`coder ssh` must start fast: it may not load a server",
  },
  control: {
    may: ["mesh", "derp", "coordinator"],
    reason: "the control plane knows neither the CLI nor the agent",
  },
};

/** The only files that may load servers and the agent, by dynamic import. Nothing may import them but main. */
const COMPOSITION = /^client\/(main|commands\/(server|agent|provisioner|wsproxy|quickstart))\.ts$/;
const PURE = /^mesh\/(wire|wireguard|session|path)\//;

interface Import {
  from: string;
  to: string;
  kind: string;
}

async function imports(): Promise<{ ours: Import[]; builtins: Import[] }> {
  const entryPoints = [...new Set(Object.keys(ALLOWED).map((name) => name.split("/")[0]))].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"))
      .map((name) => path.join(root, folder, name)),
  );
  const { metafile } = await build({
    entryPoints,
    absWorkingDir: root,
    outdir: "unused",
    bundle: true,
    write: false,
    metafile: true,
    platform: "node",
    format: "esm",
    splitting: true,
    packages: "external",
    external: EXTERNAL,
    logLevel: "error",
  });
  const all = Object.entries(metafile.inputs).flatMap(([from, { imports }]) =>
    imports.map((edge) => ({ from, to: edge.path, kind: edge.kind })),
  );
  return {
    ours: all.filter(({ to }) => !to.startsWith("node:") && /\.(ts|json)$/.test(to)),
    builtins: all.filter(({ to }) => to.startsWith("node:")),
  };
}

function ruleFor(file: string): [string, { may: string[]; reason: string }] | undefined {
  return Object.entries(ALLOWED).find(([folder]) => file.startsWith(`${folder}/`));
}

describe("layering", () => {
  let ours: Import[] = [];
  let builtins: Import[] = [];
  before(async () => {
    ({ ours, builtins } = await imports());
  });

  it("every folder imports only what the table allows", () => {
    const forbidden = ours
      .filter(({ from, kind }) => !(COMPOSITION.test(from) && kind === "dynamic-import"))
      .flatMap(({ from, to }) => {
        const rule = ruleFor(from);
        if (!rule) return [`${from} lies in no folder of the table`];
        const [folder, { may, reason }] = rule;
        const ok = [folder, ...may].some((prefix) => to.startsWith(`${prefix}/`) || to === `${prefix}.ts`);
        return ok ? [] : [`${from} imports ${to}: ${reason}`];
      });
    assert.deepEqual(forbidden, []);
  });

  it("the composition files are imported by nothing but the entry point", () => {
    const importers = ours
      .filter(
        ({ from, to }) => COMPOSITION.test(to) && !/^client\/(main|commands\/quickstart)\.ts$/.test(from),
      )
      .map(({ from, to }) => `${from} imports ${to}`);
    assert.deepEqual(importers, []);
  });

  it("the pure cores import no Node built-in", () => {
    assert.deepEqual(
      builtins.filter(({ from }) => PURE.test(from)).map(({ from, to }) => `${from} imports ${to}`),
      [],
    );
  });
});
