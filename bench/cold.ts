// npm run bench -- cold: what a person waits for `coder ssh dev true`, and for the stock OpenSSH client through us, from
// another machine: bench/delay.ts stands for the way. Beside it OpenSSH straight to an sshd on the far machine, in turns.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { bundle } from "../test/e2e/sandbox.ts";
import { hasSshd } from "../test/e2e/sshd.ts";
import { ColdLab } from "./cold-lab.ts";
import { whyNoLine } from "./delay.ts";
import { type Row, report, rounds, row } from "./report.ts";

const ROUNDS = rounds(15, 3);
/** mesh.md section 9. */
const BASE_MS = 350;
const ROUND_TRIPS = 7;
/** From there on ours must be the faster one. */
const FASTER_FROM_MS = 20;

async function timed(lab: ColdLab, argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const startedAt = performance.now();
  const child = spawn(...lab.line.inside("near", argv), { env, stdio: ["ignore", "ignore", "inherit"] });
  const [code] = (await once(child, "close")) as [number];
  if (code !== 0) throw new Error(`${argv.join(" ")} ended with ${code}`);
  return performance.now() - startedAt;
}

/** What the line is like, seen from inside: TCP connects and one-byte echoes. Prints it. */
async function checkLine(lab: ColdLab, rttMs: number): Promise<void> {
  const script = `
    const net = require("node:net"), [, host, port] = process.argv, times = [];
    const once = (n) => { const at = performance.now(); const s = net.connect(Number(port), host, () => {
      times.push(performance.now() - at); s.destroy(); n > 1 ? once(n - 1) : console.log(times.sort((a, b) => a - b)[n + 4].toFixed(1)); }); };
    once(10);`;
  const [command, args] = lab.line.inside("near", [
    ...[process.execPath, "-e", script, lab.line.addressOfFar, String(lab.sshd.port)],
  ]);
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  await once(child, "close");
  console.log(`  line: ${rttMs} ms asked for, a TCP connection took ${said.trim()} ms (median of 10)`);
}

async function main(): Promise<void> {
  const reason = whyNoLine() ?? (hasSshd() ? undefined : "sshd is not installed (Debian: openssh-server)");
  if (reason) return console.log(`cold: skipped, ${reason}`);
  const lab = await ColdLab.start();
  let isEnding = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      isEnding = true;
      void lab.close().finally(() => process.exit(130));
    });
  try {
    const rows: Row[] = [];
    const theirs = ["ssh", ...lab.sshd.options, `${lab.sshd.user}@${lab.line.addressOfFar}`, "true"];
    const variants = [
      { id: "coder-ssh", what: "coder ssh dev true", argv: [bundle, "ssh", "dev", "true"], env: lab.env },
      {
        id: "openssh",
        what: "ssh coder.dev true",
        argv: ["ssh", "-F", lab.sshConfig, "coder.dev", "true"],
        env: lab.env,
      },
      {
        id: "coder-ssh-tls",
        what: "coder ssh dev true, https",
        argv: [bundle, "ssh", "dev", "true"],
        env: lab.tlsEnv,
      },
    ];
    for (const rttMs of [0, 20, 100]) {
      await lab.line.shape({ rttMs });
      await checkLine(lab, rttMs);
      const ours = variants.map((): number[] => []);
      const control: number[] = [];
      for (let round = -1; round < ROUNDS; round++) {
        const taken: number[] = [];
        for (const { argv, env } of variants) taken.push(await timed(lab, argv, env));
        const beside = await timed(lab, theirs, lab.env);
        if (round < 0) continue; // warm-up
        for (const [i, ms] of taken.entries()) ours[i].push(ms);
        control.push(beside);
      }
      const atMostMs = BASE_MS + ROUND_TRIPS * rttMs;
      const mustBeFaster = rttMs >= FASTER_FROM_MS;
      for (const [i, { id, what }] of variants.entries())
        rows.push(
          row({
            id: `${id}-${rttMs}`,
            what: `${what}, ${rttMs} ms away`,
            unit: "ms",
            ours: ours[i],
            control: { name: "ssh to sshd", values: control },
            goal: {
              text: `<= ${atMostMs} ms${mustBeFaster ? ", faster than sshd" : ""}`,
              holds: (own, beside) =>
                own.median <= atMostMs && (!mustBeFaster || own.median < (beside?.median ?? 0)),
            },
          }),
        );
    }
    report({
      group: "cold",
      title:
        "a first command over a line with a delay; a ratio below 1 is faster than OpenSSH straight to the host",
      rows,
    });
  } catch (error) {
    if (!isEnding) throw error;
    await new Promise(() => undefined); // what the signal's end breaks is no news
  } finally {
    if (!isEnding) await lab.close();
  }
}

await main();
