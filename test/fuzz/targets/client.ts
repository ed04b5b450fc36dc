// What a hostile server, template or workspace can put before the user of the command line: names in tables, errors, logs,
// SSH configuration. Nothing of it may steer the terminal, add a line to a file, or end the command with a stack trace.
import assert from "node:assert/strict";
import { Writable } from "node:stream";
import { parseDurationMs } from "../../../client/duration.ts";
import { ApiError, CliError, reportError } from "../../../client/errors.ts";
import { formatEndpoint, parsePortForwards, parseSshForward } from "../../../client/forward/spec.ts";
import { parseDisplay } from "../../../client/forward/x11.ts";
import { errorBody } from "../../../client/http.ts";
import { jobLogPrinter } from "../../../client/logs.ts";
import { formatJson, formatTable } from "../../../client/output.ts";
import { parseDeploymentSsh } from "../../../client/ssh-config/deployment.ts";
import {
  findSection,
  parseSshOption,
  recordedOptions,
  renderSection,
  replaceSection,
  type SectionOptions,
} from "../../../client/ssh-config/section.ts";
import { printable } from "../../../client/text.ts";
import { CoordinatorError } from "../../../coordinator/errors.ts";
import { fromUtf8, utf8 } from "../../../mesh/wire/bytes.ts";
import { decodeCoordinatorMessage } from "../../../mesh/wire/coordinator.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import { outcomeOf, type Target } from "../engine.ts";

const json = (value: unknown): Uint8Array => utf8(JSON.stringify(value));
const STEERING = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/;
const options: SectionOptions = {
  wait: "auto",
  disableAutostart: false,
  forceUnixFilePaths: false,
  skipProxyCommand: false,
  sshHostPrefix: "coder.",
  hostnameSuffix: "coder",
  coderBinaryPath: "",
  sshOptions: [],
};
const paths = { program: ["/usr/bin/coder"], knownHosts: "/home/x/.config/known_hosts", isWindows: false };
const section = renderSection(options, paths as never);

class Collected extends Writable {
  text = "";
  override _write(chunk: Uint8Array, _encoding: string, done: () => void): void {
    this.text += String(chunk);
    done();
  }
}

/** What a user sees of an error. */
function reported(error: unknown): string {
  const out = new Collected({ decodeStrings: true });
  reportError(error, out);
  assert.ok(!STEERING.test(out.text), `steers the terminal: ${JSON.stringify(out.text)}`);
  assert.ok(!out.text.startsWith("internal error"), out.text);
  return out.text;
}

function parsed(input: Uint8Array): unknown {
  try {
    return JSON.parse(fromUtf8(input));
  } catch {
    return undefined;
  }
}

const escapes = ["\x1b[2J", "\x1b]0;x\x07", "\x9b31m", "\x1bP", "\r", "\x7f", "\x1b(0"].map(utf8);

export const clientTargets: Target[] = [
  {
    name: "cli-text",
    format: "text",
    seeds: ["dev", "a\x1b[31mred\x1b[0m", "\x1b]8;;http://x\x1b\\link", "tab\tnew\nline", "é😀"].map(utf8),
    dictionary: escapes,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        assert.ok(!STEERING.test(printable(text)), "printable lets something through");
        const table = formatTable([{ name: text, status: "x" }], ["name", "status"]);
        assert.equal(table.split("\n").length, 2, "a cell of two lines");
        assert.ok(!/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(table), "a table that steers the terminal");
        assert.ok(!STEERING.test(formatJson({ [text]: text })));
        return String(printable(text).length === text.length);
      },
    }),
  },
  {
    name: "cli-errors",
    format: "json",
    seeds: [
      json({
        message: "no",
        detail: "d",
        code: "ERR_X",
        validations: [{ field: "name", detail: "is taken" }],
      }),
      json({ type: "error", request: 1, code: "ERR_NOT_FOUND", message: "no such agent" }),
    ],
    dictionary: escapes,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        reported(new ApiError(400, errorBody(new TextDecoder().decode(input)), "GET /x"));
        return outcomeOf(() => {
          const message = decodeCoordinatorMessage(input);
          if (message?.type !== "error") return "other";
          reported(new CoordinatorError(message.code as `ERR_${string}`, message.message));
          return "error";
        }, WireError);
      },
    }),
  },
  {
    name: "cli-logs",
    format: "json",
    seeds: [
      json({
        id: 1,
        created_at: "2026-01-02T03:04:05Z",
        log_source: "provisioner",
        log_level: "info",
        stage: "Plan",
        output: "x",
      }),
    ],
    dictionary: escapes,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const line = parsed(input) as { output?: unknown; stage?: unknown } | undefined;
        if (typeof line?.output !== "string" || typeof line.stage !== "string") return "no line";
        const seen: string[] = [];
        jobLogPrinter((text) => seen.push(printable(text)))(line as never);
        assert.ok(seen.every((text) => !STEERING.test(text)));
        return String(seen.length);
      },
    }),
  },
  {
    name: "ssh-config-of-servers",
    format: "json",
    seeds: [
      json({
        hostname_prefix: "coder.",
        hostname_suffix: "coder",
        ssh_config_options: { User: "dev", ConnectTimeout: "5", SetEnv: "A=b" },
      }),
      json({
        hostname_prefix: "my-coder--",
        ssh_config_options: { ProxyCommand: "evil", "Compression\nProxyCommand": "yes" },
      }),
    ],
    dictionary: ["\n", "\r", "\0", '"', "ProxyCommand", "Match all", " "].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const server = parseDeploymentSsh(parsed(input));
        return outcomeOf(() => {
          const text = renderSection(
            {
              ...options,
              serverOptions: server.options,
              sshHostPrefix: server.hostnamePrefix ?? options.sshHostPrefix,
              hostnameSuffix: server.hostnameSuffix ?? options.hostnameSuffix,
            },
            paths as never,
          );
          // One section, whose programs are ours alone, however the file is read.
          const lines = text.split(/[\r\n]/);
          const proxies = lines.filter((line) => /^\s*proxycommand/i.test(line));
          assert.ok(
            proxies.length === 1 && proxies[0].includes("/usr/bin/coder"),
            "a program of the server's",
          );
          assert.ok(!lines.some((line) => /^\s*(match|include|localcommand|identityfile)\b/i.test(line)));
          assert.equal(lines.filter((line) => /^\s*host\s/i.test(line)).length, 1);
          assert.equal(findSection(text)?.section, text);
          return `${server.options.length} ${server.ignored.length}`;
        }, CliError);
      },
    }),
  },
  {
    name: "ssh-config-files",
    format: "text",
    seeds: [utf8(`Host x\n  User y\n\n${section}`), utf8(section), utf8("Host *\r\n  Compression yes\r\n")],
    maxBytes: 6_000,
    dictionary: ["# ------------START-CODER-----------", "\r\n", "\n", "# :ssh-option=", "# :wait=yes"].map(
      utf8,
    ),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = Buffer.from(input).toString("latin1");
        return outcomeOf(() => {
          const found = findSection(text);
          if (found) {
            assert.equal(found.before + found.section + found.after, text);
            recordedOptions(found.section, options);
            return "found";
          }
          assert.equal(
            replaceSection(replaceSection(text, section), undefined),
            text,
            "removing does not restore",
          );
          return "none";
        }, CliError);
      },
    }),
  },
  {
    name: "cli-arguments",
    format: "text",
    seeds: [
      "8080:80",
      "127.0.0.1:8080:host:80",
      "[::1]:1:/sock",
      "3000-3005",
      ":0.1",
      "1h30m",
      "ForwardAgent=yes",
      "host:0",
    ].map(utf8),
    dictionary: [":", "-", "[", "]", "/", ",", "*", "0", "65535", "="].map(utf8),
    maxBytes: 400,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        const words = [
          outcomeOf(() => String(parsePortForwards([text], "tcp").length <= 512), CliError),
          outcomeOf(() => {
            const { target } = parseSshForward(text, "-L") as {
              target?: Parameters<typeof formatEndpoint>[0];
            };
            return target && formatEndpoint(target) ? "L" : "D";
          }, CliError),
          outcomeOf(() => parseDisplay(text).target.kind, CliError),
          outcomeOf(() => String(Number.isFinite(parseDurationMs(text))), CliError),
          outcomeOf(() => String(parseSshOption(text).value.includes("\n")), CliError),
        ];
        return words.join(" ");
      },
    }),
  },
];
