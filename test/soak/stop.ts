// Stops and starts a server again and again while clients hold everything open that can be held open: half requests, half
// handshakes, sockets nobody reads, sessions under load. Prints how long each stop and start took, and what was left.
//
//   npm run build && npx tsx test/soak/stop.ts [rounds] [flags of coder server ...]
import { readdirSync } from "node:fs";
import net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { SshLab } from "../e2e/lab.ts";
import { TestServer } from "../e2e/server.ts";

const LATE_MS = 30_000;

function hostile(port: number, token: string): net.Socket[] {
  const upgrade = (path: string, protocol: string, more = ""): string =>
    `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${more}\r\n`;
  const webSocket = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
  const texts = [
    "",
    "GET /api/v2/buildinfo HT",
    "GET /api/v2/buildinfo HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /api/v2/users/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    upgrade("/derp", "DERP"),
    upgrade("/api/v2/mesh/coordinate", "websocket", `${webSocket}Coder-Session-Token: ${token}\r\n`),
    upgrade("/api/v2/mesh/coordinate", "websocket", `${webSocket}Coder-Session-Token: none\r\n`),
  ];
  return texts.flatMap((text) =>
    Array.from({ length: 20 }, (_, i) => {
      const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      socket.on("error", () => undefined);
      if (text) socket.write(text);
      if (i % 2) socket.resume();
      if (i % 4 === 0) socket.end();
      return socket;
    }),
  );
}

async function main(): Promise<void> {
  const [rounds = "5", ...args] = process.argv.slice(2);
  const lab = await SshLab.start({ args });
  try {
    for (let round = 0; round < Number(rounds); round++) {
      const sockets = hostile(lab.gate.targetPort, lab.alice.token.trim());
      const sessions = ["sleep 300", "cat /dev/zero"].map((command) =>
        lab.alice.start("ssh", "dev", command),
      );
      sessions[1].child.stdout?.removeAllListeners("data").pause();
      await delay(round % 2 ? 200 : 2_000);
      const { running } = lab.server;
      const stoppedAt = performance.now();
      running.child.kill("SIGTERM");
      const ended = await Promise.race([running.finished, delay(LATE_MS, undefined, { ref: false })]);
      const stopMs = Math.round(performance.now() - stoppedAt);
      const left = readdirSync(lab.sandbox.tmp).join(" ") || "nothing";
      if (!ended) {
        console.log(running.stderr.slice(-2_000));
        running.child.kill("SIGKILL");
        await running.finished;
      }
      const startedAt = performance.now();
      lab.server = await TestServer.start(lab.sandbox, {
        port: String(lab.gate.targetPort),
        args: ["--access-url", lab.gate.url, ...args],
      });
      const startMs = Math.round(performance.now() - startedAt);
      console.log({ round, isLate: !ended, code: ended?.code, stopMs, startMs, left });
      for (const socket of sockets) socket.destroy();
      for (const { child } of sessions) child.kill("SIGKILL");
      await Promise.all(sessions.map(({ finished }) => finished));
    }
  } finally {
    await lab.close();
  }
}

await main();
