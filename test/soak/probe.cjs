// Runs inside a program under a soak test, before it, in a private copy of the installation: tells over a unix socket
// what only the process itself knows. The programs know nothing of it; see install.ts.
const { mkdirSync, rmSync } = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const v8 = require("node:v8");
const vm = require("node:vm");

const WATCHED = ["server", "agent", "port-forward"];
const isRelay = path.basename(process.argv[1] ?? "") === "relay.mjs";

let collect;

/** Heap after a collection in bytes, and how many there are of each kind of handle and request. */
function look() {
  if (!collect) {
    // Only now: a flag set before the start makes V8 refuse code that was compiled without it.
    v8.setFlagsFromString("--expose-gc");
    collect = vm.runInNewContext("gc");
  }
  collect();
  const resources = {};
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1;
  return {
    memory: process.memoryUsage(),
    resources,
    cpu: process.cpuUsage(),
    uptimeSeconds: process.uptime(),
  };
}

if (isRelay || process.env.SOAK_PROBE === "1" || process.argv.some((word) => WATCHED.includes(word))) {
  const folder = path.join(__dirname, "../probes");
  mkdirSync(folder, { recursive: true });
  const file = path.join(folder, `${process.pid}.sock`);
  rmSync(file, { force: true });
  const server = net.createServer((socket) => {
    socket.on("error", () => undefined);
    socket.end(JSON.stringify(look()));
  });
  server.on("error", () => undefined);
  server.listen(file);
  server.unref();
}
