// Two machines with a delay line between them: server, relay, agent and an sshd at the far end, people at the near one.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { bundle, type Running, root, Sandbox } from "../test/e2e/sandbox.ts";
import { PASSWORD } from "../test/e2e/server.ts";
import { Sshd } from "../test/e2e/sshd.ts";
import { poll } from "../test/e2e/tmux.ts";
import { type DelayLine, delayLine } from "./delay.ts";

const HTTP_PORT = 8_080;
const HTTPS_PORT = 8_443;

/** What companies put in front of the server: TLS ends there, and what is inside is handed on. */
const TLS_FRONT = `
const { readFileSync } = require("node:fs"), net = require("node:net"), tls = require("node:tls");
const [, dir, host, port, target] = process.argv;
const options = { key: readFileSync(dir + "/tls.key"), cert: readFileSync(dir + "/tls.crt") };
tls.createServer({ ...options, noDelay: true }, (near) => {
  const far = net.connect({ host, port: Number(target), noDelay: true });
  near.on("error", () => far.destroy()).pipe(far);
  far.on("error", () => near.destroy()).pipe(near);
}).listen(Number(port), host, () => console.log("ready"));
`;

export class ColdLab {
  readonly program: string;
  readonly line: DelayLine;
  readonly sshd: Sshd;
  readonly sshConfig: string;
  /** Of every command at the near end. */
  readonly env: NodeJS.ProcessEnv;
  /** `env` for the server behind TLS. */
  readonly tlsEnv: NodeJS.ProcessEnv;
  readonly #sandbox: Sandbox;
  readonly #server: Running;
  readonly #front: Running;

  private constructor(
    parts: Pick<ColdLab, "program" | "line" | "sshd" | "sshConfig" | "env" | "tlsEnv">,
    sandbox: Sandbox,
    server: Running,
    front: Running,
  ) {
    this.program = parts.program;
    this.line = parts.line;
    this.sshd = parts.sshd;
    this.sshConfig = parts.sshConfig;
    this.env = parts.env;
    this.tlsEnv = parts.tlsEnv;
    this.#sandbox = sandbox;
    this.#server = server;
    this.#front = front;
  }

  /** @param program what `coder` is, at both ends */
  static async start(program = bundle): Promise<ColdLab> {
    const line = await delayLine({ rttMs: 0 });
    const sandbox = new Sandbox();
    try {
      const host = line.addressOfFar;
      const far = (...argv: string[]) => sandbox.start(...line.inside("far", argv));
      const data = path.join(sandbox.dir, "srv");
      const address = ["--http-address", `${host}:${HTTP_PORT}`];
      const server = far(process.execPath, program, "server", ...address, "--global-config", data);
      await sandbox.until(server, "stderr", /^Serving (http:\/\/\S+)\. /m);
      const url = `http://${host}:${HTTP_PORT}`;

      makeCertificate(sandbox.dir, host);
      const front = far(
        ...[process.execPath, "-e", TLS_FRONT, sandbox.dir, host, String(HTTPS_PORT), String(HTTP_PORT)],
      );
      await sandbox.until(front, "stdout", /ready/);

      const env = { ...sandbox.env, CODER_CONFIG_DIR: path.join(sandbox.dir, "config") };
      const tlsEnv = {
        ...env,
        CODER_URL: `https://${host}:${HTTPS_PORT}`,
        NODE_EXTRA_CA_CERTS: path.join(sandbox.dir, "tls.crt"),
      };
      const must = async (...args: string[]) => {
        const done = await sandbox.start(...line.inside("near", [process.execPath, program, ...args]), {
          ...env,
          CODER_FIRST_USER_PASSWORD: PASSWORD,
        }).finished;
        assert.equal(done.code, 0, `coder ${args.join(" ")}\n${done.stderr}`);
      };
      const user = ["--first-user-username", "alice", "--first-user-email", "alice@example.com"];
      await must("login", url, ...user);
      const push = [
        "templates",
        "push",
        "local",
        "--yes",
        "--directory",
        path.join(root, "deploy/templates/local"),
      ];
      await must(...push, "--variable", `path=${path.join(sandbox.dir, "ws")}`);
      await must("create", "dev", "--template", "local", "--yes");
      const sshConfig = path.join(sandbox.home, ".ssh", "config");
      mkdirSync(path.dirname(sshConfig), { mode: 0o700 });
      await must("config-ssh", "--yes", "--ssh-config-file", sshConfig);
      await must("ssh", "dev", "true");
      const sshd = await Sshd.start(path.join(sandbox.dir, "sshd"), {
        address: host,
        within: (argv) => line.inside("far", argv),
      });
      return new ColdLab({ program, line, sshd, sshConfig, env, tlsEnv }, sandbox, server, front);
    } catch (error) {
      sandbox.dispose();
      await line.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.line.shape({ rttMs: 0 });
    await this.sshd.stop();
    const stop = this.line.inside("near", [process.execPath, this.program, "stop", "dev", "--yes"]);
    await this.#sandbox.run(...stop, { CODER_CONFIG_DIR: this.env["CODER_CONFIG_DIR"] });
    this.#front.child.kill("SIGTERM");
    this.#server.child.kill("SIGTERM");
    await Promise.all([this.#server.finished, this.#front.finished]);
    const allEnded = poll(
      () => this.#sandbox.processes().length === 0,
      () => `all processes end:\n${this.#sandbox.processes().join("\n")}`,
    );
    await allEnded.finally(async () => {
      this.#sandbox.dispose();
      await this.line.close();
    });
  }
}

function makeCertificate(dir: string, host: string): void {
  const files = ["-keyout", path.join(dir, "tls.key"), "-out", path.join(dir, "tls.crt")];
  const name = ["-subj", "/CN=cold", "-addext", `subjectAltName=IP:${host}`, "-days", "2"];
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  execFileSync("openssl", ["req", "-x509", ...key, ...files, ...name], { stdio: "ignore" });
}
