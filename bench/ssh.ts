// npm run bench -- ssh: the stock OpenSSH client, once through `coder ssh --stdio` to a workspace and once to an sshd,
// both on this machine and in turns. What is timed is the whole command, as the person waits for it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { SshLab } from "../test/e2e/lab.ts";
import { Sshd } from "../test/e2e/sshd.ts";
import { type Row, report, rounds as roundsOf, row } from "./report.ts";

const ROUNDS = roundsOf(30, 3);
const BULK_ROUNDS = roundsOf(5, 1);
const BULK_BYTES = 200_000_000;

async function timed(
  command: string,
  args: readonly string[],
  options: { env: NodeJS.ProcessEnv; stdin?: "zeros" },
): Promise<number> {
  const startedAt = performance.now();
  const child = spawn(command, args, {
    env: options.env,
    stdio: [options.stdin ? "pipe" : "ignore", "pipe", "inherit"],
  });
  if (child.stdin) {
    const zeros = Buffer.alloc(1 << 16);
    void (async () => {
      for (let sent = 0; sent < BULK_BYTES; sent += zeros.length)
        if (!child.stdin?.write(zeros.subarray(0, Math.min(zeros.length, BULK_BYTES - sent))))
          await once(child.stdin as NodeJS.WritableStream, "drain");
      child.stdin?.end();
    })();
  }
  child.stdout?.resume();
  const [code] = (await once(child, "close")) as [number];
  if (code !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${code}`);
  return performance.now() - startedAt;
}

const lab = await SshLab.start({ direct: true });
const sshd = await Sshd.start(lab.local("sshd"));
try {
  const env = { ...lab.sandbox.env, CODER_CONFIG_DIR: lab.alice.configDir };
  const ours = ["-F", lab.sshConfig, "coder.dev"];
  const theirs = [...sshd.options, `${sshd.user}@127.0.0.1`];
  const native = [lab.program, "ssh", "dev", "--"];
  const rows: Row[] = [];
  const compare = async (
    id: string,
    what: string,
    rounds: number,
    run: (target: string[]) => Promise<number>,
    variants: string[][],
  ) => {
    const [a, b] = [[], []] as number[][];
    for (let round = -1; round < rounds; round++) {
      const pair = [await run(variants[0]), await run(variants[1])];
      if (round < 0) continue; // warm-up
      a.push(pair[0]);
      b.push(pair[1]);
    }
    rows.push(
      row({
        id,
        what,
        unit: "ms",
        ours: a,
        control: { name: "OpenSSH to sshd", values: b },
      }),
    );
  };
  const ssh = (target: string[]) => ["ssh", ...target];
  await compare(
    "ssh-true",
    "ssh HOST true",
    ROUNDS,
    (target) => timed(target[0], [...target.slice(1), "true"], { env }),
    [ssh(ours), ssh(theirs)],
  );
  await compare(
    "coder-ssh-true",
    "coder ssh dev true, beside ssh HOST true",
    ROUNDS,
    (target) => timed(target[0], [...target.slice(1), "true"], { env }),
    [native, ssh(theirs)],
  );
  writeFileSync(lab.remote("zeros"), Buffer.alloc(BULK_BYTES));
  await compare(
    "to-here",
    `ssh HOST cat, ${BULK_BYTES / 1e6} MB to here`,
    BULK_ROUNDS,
    (target) => timed(target[0], [...target.slice(1), `cat '${lab.remote("zeros")}'`], { env }),
    [ssh(ours), ssh(theirs)],
  );
  await compare(
    "to-there",
    `ssh HOST 'cat >/dev/null', ${BULK_BYTES / 1e6} MB to there`,
    BULK_ROUNDS,
    (target) => timed(target[0], [...target.slice(1), "cat >/dev/null"], { env, stdin: "zeros" }),
    [ssh(ours), ssh(theirs)],
  );
  report({
    group: "ssh",
    title: "OpenSSH's client, over one relay on loopback; a ratio below 1 is faster",
    rows,
  });
} finally {
  await sshd.stop();
  await lab.close();
}
