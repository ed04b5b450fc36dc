// node deploy/compile.mjs SCRIPT CACHE: writes what V8 makes of all functions of a script, for `cachedData` of vm.Script
// in a process without V8 flags. All, not those that one run uses: no run is needed, and to read them costs 5 ms more.
import { readFileSync, writeFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import vm from "node:vm";

const [filename, cache] = process.argv.slice(2);
const options = {
  filename,
  importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
};
const source = readFileSync(filename, "latin1");
setFlagsFromString("--no-lazy");
const script = new vm.Script(source, options);
setFlagsFromString("--lazy"); // V8 compares flags: it is to find those it has by default
const cachedData = script.createCachedData();
if (new vm.Script(source, { ...options, cachedData }).cachedDataRejected)
  process.stderr.write(`note: V8 does not take its own cache: \`coder ssh\` starts slower\n`);
writeFileSync(cache, cachedData);
