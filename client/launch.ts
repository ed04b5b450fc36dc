// dist/coder.js: what starts when somebody types `coder`. A CommonJS script, because Node's loader of ES modules alone
// takes 5 ms, and it loads nothing but Node's own.
//
// IDEs start `coder ssh` often, and every stock `ssh` waits for one. So the build puts that command into one script, and
// beside it what V8 compiled of it: deploy/build.mjs. The rest of the commands is ES modules, main.ts.
import { mkdirSync, readFileSync } from "node:fs";
import nodeModule from "node:module";
import { homedir } from "node:os";
import path from "node:path";
import vm from "node:vm";
import { commandName } from "./words.ts";

/** The script's name without .js, made of its contents: a cache can't belong to another one. */
declare const SSH_SCRIPT: string;

type Script = (require: NodeJS.Require, filename: string) => void;

function readIfThere(file: string): Buffer | undefined {
  try {
    return readFileSync(file);
  } catch {
    return undefined;
  }
}

/** Runs `coder ssh`. V8 takes the cache only when its version and flags are those it was made with; else it compiles. */
function runSsh(cachedData: Buffer | undefined): void {
  const filename = path.join(__dirname, `${SSH_SCRIPT}.js`);
  const script = new vm.Script(readFileSync(filename, "latin1") /* esbuild writes ASCII */, {
    filename,
    cachedData,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
  (script.runInThisContext() as Script)(require, filename);
}

/** Node 22.1 and newer keep what V8 compiled for the next start: in a folder of the user's own, for it is code. */
function useCompileCache(enable: (dir: string) => unknown): void {
  if (process.env["NODE_DISABLE_COMPILE_CACHE"]) return;
  const { env } = process;
  const base =
    env["XDG_CACHE_HOME"] ??
    (process.platform === "win32" ? env["LOCALAPPDATA"] : undefined) ??
    path.join(homedir(), process.platform === "darwin" ? "Library/Caches" : ".cache");
  const dir = path.join(base, "coder", "compiled");
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    enable(dir);
  } catch {
    // a read-only home: compiled each time, as before
  }
}

const { enableCompileCache } = nodeModule as { enableCompileCache?: (dir: string) => unknown };
const isSsh = commandName(process.argv.slice(2)) === "ssh";
const cache = isSsh
  ? readIfThere(path.join(__dirname, `${SSH_SCRIPT}-${process.version}-${process.arch}.cache`))
  : undefined;
// Built by another Node: a newer one's own cache then does better than no cache.
if (isSsh && (cache || !enableCompileCache)) runSsh(cache);
else {
  if (enableCompileCache) useCompileCache(enableCompileCache);
  const main: string = "./main.mjs";
  void import(main);
}
