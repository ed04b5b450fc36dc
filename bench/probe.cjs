// Loaded into a server or agent under measurement (NODE_OPTIONS=--require) when BENCH_PROBE names a folder: tells over a unix
// socket there, named after the process id, what only the process itself knows. "gc": collects garbage before.
const { rmSync } = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const { monitorEventLoopDelay } = require("node:perf_hooks");
const v8 = require("node:v8");
const vm = require("node:vm");

const RESOLUTION_MS = 5;
let collect;

function collectGarbage() {
  if (!collect) {
    // Only now: a flag set before the start makes V8 refuse code that was compiled without it.
    v8.setFlagsFromString("--expose-gc");
    collect = vm.runInNewContext("gc");
  }
  for (let i = 0; i < 3; i++) collect();
}

const folder = process.env.BENCH_PROBE;
if (folder && process.argv.some((word) => ["server", "agent"].includes(word))) {
  const delays = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delays.enable();
  const file = path.join(folder, `${process.pid}.sock`);
  rmSync(file, { force: true });
  const server = net.createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", (asked) => {
      // What came in just now, and the delays it caused, are not of interest: look first.
      const ms = (ns) => Math.max(0, ns / 1e6 - RESOLUTION_MS);
      const loop = { p50: ms(delays.percentile(50)), p99: ms(delays.percentile(99)), max: ms(delays.max) };
      if (String(asked) === "gc") collectGarbage();
      delays.reset();
      socket.end(JSON.stringify({ loop, memory: process.memoryUsage() }));
    });
  });
  server.on("error", () => undefined);
  server.listen(file);
  server.unref();
}
