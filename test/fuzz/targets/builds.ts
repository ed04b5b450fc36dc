// What a template's author or Terraform hands us: archives, configuration, messages, plans, graphs, patterns, schedules, and
// the plugin protocol of our provider (protobuf, MessagePack, every method of the service).
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, rm, stat } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { CronError, nextDue, parseCron } from "../../../agent/cron.ts";
import {
  schedulesOverlap,
  scriptCronProblem,
  standardCronProblem,
} from "../../../control/provisioner/provider/cron.ts";
import { DATA_SOURCES } from "../../../control/provisioner/provider/data-sources.ts";
import { ProviderError } from "../../../control/provisioner/provider/errors.ts";
import {
  isGoFloat,
  parseGoBool,
  parseGoInt,
  urlProblem,
} from "../../../control/provisioner/provider/go-syntax.ts";
import { decodeMsgpack, encodeMsgpack } from "../../../control/provisioner/provider/msgpack.ts";
import { compileRegex } from "../../../control/provisioner/provider/regex.ts";
import { RESOURCES } from "../../../control/provisioner/provider/resources.ts";
import { type Block, blockType } from "../../../control/provisioner/provider/schema.ts";
import { createService } from "../../../control/provisioner/provider/service.ts";
import * as tf from "../../../control/provisioner/provider/tfplugin5.ts";
import { type ObjectValue, objectValue } from "../../../control/provisioner/provider/value.ts";
import { TerraformError } from "../../../control/provisioner/terraform/errors.ts";
import { extractResources } from "../../../control/provisioner/terraform/extract.ts";
import { extractInputs } from "../../../control/provisioner/terraform/extract-inputs.ts";
import { DependencyGraph, lastKey, withoutKeys } from "../../../control/provisioner/terraform/graph.ts";
import { literalValue, scanBlocks } from "../../../control/provisioner/terraform/hcl.ts";
import { parseMessage, summarize } from "../../../control/provisioner/terraform/messages.ts";
import {
  planResources,
  type ShownPlan,
  stateResources,
} from "../../../control/provisioner/terraform/plan-json.ts";
import { needsInit, readVariables } from "../../../control/provisioner/terraform/variables.ts";
import { readTemplate, unpackTemplate } from "../../../control/provisioner/terraform/workdir.ts";
import { utf8 } from "../../../mesh/wire/bytes.ts";
import { MeshError } from "../../../mesh/wire/errors.ts";
import { type Instance, outcomeOf, type Target } from "../engine.ts";

const json = (value: unknown): Uint8Array => utf8(JSON.stringify(value));

interface TarEntry {
  name: string;
  text?: string;
  /** Default "0", a file. "1" hard link, "2" symlink, "5" folder, "L" the next entry's long name, "x" pax. */
  type?: string;
  linkname?: string;
}

/** By hand: what writes archives for us would not write most of these. */
function tarOf(entries: readonly TarEntry[]): Uint8Array {
  const parts = entries.flatMap(({ name, text = "", type = "0", linkname = "" }) => {
    const header = Buffer.alloc(512);
    header.write(name, 0, 100, "latin1");
    header.write("0000644\0", 100);
    header.write(`${text.length.toString(8).padStart(11, "0")}\0`, 124);
    header.write("00000000000\0", 136);
    header.write(type, 156);
    header.write(linkname, 157, 100, "latin1");
    header.write("ustar\x0000", 257);
    const body = Buffer.alloc(Math.ceil(text.length / 512) * 512);
    body.write(text, "latin1");
    return [header, body];
  });
  return repairTar(Uint8Array.from(Buffer.concat([...parts, Buffer.alloc(1_024)])));
}

const longName = `${"d/".repeat(60)}${"n".repeat(80)}.tf`;
const archives = [
  tarOf([
    { name: "main.tf", text: 'variable "x" {}' },
    { name: "README.md", text: "# x" },
  ]),
  tarOf([
    { name: "a/", type: "5" },
    { name: "a/b.tf", text: "locals {}" },
    { name: "l", type: "2", linkname: "a/b.tf" },
    { name: "h", type: "1", linkname: "a/b.tf" },
    { name: "m.tf" },
  ]),
  tarOf([
    { name: "long", type: "L", text: `${longName}\0` },
    { name: "d", text: "x" },
    { name: "pax", type: "x", text: "17 path=p/q.tf\n\n" },
    { name: "e.tf", text: "x" },
  ]),
];

/** The header's checksum right again, as whoever writes archives by hand would. */
function repairTar(input: Uint8Array): Uint8Array {
  const out = input.slice();
  for (let at = 0; at + 512 <= out.length; at += 512) {
    if (Buffer.from(out.subarray(at + 257, at + 262)).toString("latin1") !== "ustar") continue;
    out.fill(0x20, at + 148, at + 156);
    let sum = 0;
    for (let i = at; i < at + 512; i++) sum += out[i];
    out.set(utf8(`${sum.toString(8).padStart(6, "0")}\0 `), at + 148);
  }
  return out;
}

/** Archives are unpacked beside a file that nothing may touch. */
async function archiveInstance(): Promise<Instance> {
  const root = await mkdtemp(path.join(os.tmpdir(), "fuzz-archive-"));
  let count = 0;
  return {
    async run(input) {
      const dir = path.join(root, `t${count++}`, "in");
      await mkdir(dir, { recursive: true });
      let outcome = "ok";
      try {
        await unpackTemplate(input, dir, { maxEntries: 50, maxTotalBytes: 100_000 } as never);
        await readTemplate(dir);
      } catch (error) {
        if (!(error instanceof TerraformError)) throw error;
        outcome = error.message.replaceAll(/"[^"]*"|\d+/g, "#").slice(0, 90);
      }
      assert.deepEqual(await readdir(path.dirname(dir)), ["in"], "something was written outside");
      assert.ok((await stat(dir)).isDirectory());
      await rm(path.dirname(dir), { recursive: true, force: true });
      assert.deepEqual(await readdir(root), [], "something was written outside");
      return outcome;
    },
    end: () => rm(root, { recursive: true, force: true }),
  };
}

const HCL = `terraform { required_providers { coder = { source = "coder/coder" } } }
variable "region" {
  type        = string
  default     = "eu" # here
  description = <<-EOT
    Where it runs
    EOT
  sensitive = false
}
resource "coder_agent" "main" { os = "linux" arch = "amd64" }
module "m" { source = "./m" count = length([for x in [1,2] : "\${x}-%{if true}y%{endif}"]) }
locals { a = { b = [1, "two"], /* c */ d = !true } }
`;

const resource = (type: string, values: object, mode = "managed", name = "main") => ({
  address: `${mode === "data" ? "data." : ""}${type}.${name}`,
  mode,
  type,
  name,
  values,
});
const plan = {
  planned_values: {
    root_module: {
      resources: [
        resource("coder_agent", {
          id: "a",
          os: "linux",
          arch: "amd64",
          token: "t",
          env: { A: "b" },
          dir: "/x",
        }),
        resource("coder_app", {
          agent_id: "a",
          slug: "code",
          display_name: "Code",
          url: "http://localhost:1",
          healthcheck: [],
        }),
        resource("coder_script", {
          agent_id: "a",
          display_name: "s",
          script: "x",
          cron: "0 0 9 * * *",
          run_on_start: true,
        }),
        resource("coder_metadata", {
          resource_id: "r",
          daily_cost: 3,
          item: [{ key: "k", value: "v", sensitive: false }],
        }),
        resource("docker_container", { id: "r", name: "c" }),
      ],
      child_modules: [{ resources: [resource("coder_env", { agent_id: "a", name: "N", value: "v" })] }],
    },
  },
  prior_state: {
    values: {
      root_module: {
        resources: [
          resource(
            "coder_parameter",
            {
              name: "size",
              type: "number",
              default: "2",
              mutable: true,
              option: [{ name: "s", value: "2" }],
              validation: [{ min: 1, max: 9, regex: "", monotonic: "increasing" }],
            },
            "data",
          ),
          resource("coder_workspace_preset", { name: "p", parameters: { size: "2" } }, "data", "preset"),
          resource("coder_workspace_tags", { tags: { a: "b" } }, "data", "tags"),
          resource("coder_external_auth", { id: "github", optional: true }, "data", "auth"),
        ],
      },
    },
  },
};
const GRAPH = `digraph {
  "[root] coder_agent.main (expand)" [label = "coder_agent.main"]
  "[root] docker_container.main (expand)" -> "[root] coder_agent.main (expand)"
  "[root] coder_app.main (expand)" -> "[root] coder_agent.main (expand)"
  "[root] coder_metadata.main (expand)" -> "[root] docker_container.main (expand)"
  "[root] module.m.var.x (expand)" -> "[root] provider[\\"registry.terraform.io/coder/coder\\"]"
}
`;
const graph = DependencyGraph.parse(GRAPH);

const messages = [
  { "@level": "info", "@message": "Plan: 1 to add", type: "change_summary" },
  { "@level": "info", "@message": "x: Plan to create", type: "planned_change", change: {} },
  { "@level": "info", "@message": "x: Read", type: "apply_start", hook: { action: "read" } },
  {
    "@level": "error",
    "@message": "Error: no",
    type: "diagnostic",
    diagnostic: {
      severity: "error",
      summary: "No value for required variable",
      detail: 'The root module input variable "x" is not set',
      address: "a.b",
      range: {
        filename: "main.tf",
        start: { line: 1, column: 2, byte: 3 },
        end: { line: 1, column: 2, byte: 3 },
      },
      snippet: {
        context: 'variable "x"',
        code: "x",
        start_line: 1,
        values: [{ traversal: "a", statement: "is b" }],
      },
    },
  },
];

/** An object of a block with every attribute null, or text where that fits. */
function sample(block: Block, isFilled: boolean): ObjectValue {
  const out = objectValue();
  for (const [name, attribute] of Object.entries(block.attributes)) {
    const type = JSON.stringify(attribute.type);
    out[name] = !isFilled
      ? null
      : type === '"string"'
        ? "http://x"
        : type === '"number"'
          ? 3
          : type === '"bool"'
            ? true
            : null;
  }
  for (const [name, nested] of Object.entries(block.blocks ?? {}))
    out[name] = isFilled ? [sample(nested.block, true)] : [];
  return out;
}

const blocks = [...RESOURCES, ...DATA_SOURCES];
const service = createService(
  { env: new Map(), agentTokens: "keep" },
  () => "00000000-0000-4000-8000-000000000000",
);
const methods = [...service.methods.keys()];

/** Method number, then the request. */
function requestSeeds(): Uint8Array[] {
  const seeds: Uint8Array[] = [];
  const add = (method: string, request: Uint8Array): void => {
    const out = new Uint8Array(1 + request.length);
    out[0] = methods.indexOf(method);
    out.set(request, 1);
    seeds.push(out);
  };
  for (const [typeName, block] of blocks) {
    const config = { msgpack: encodeMsgpack(sample(block, true), blockType(block)) };
    const none = { msgpack: encodeMsgpack(sample(block, false), blockType(block)) };
    if (DATA_SOURCES.has(typeName)) {
      add("ValidateDataSourceConfig", tf.ValidateRequest.encode({ typeName, config }));
      add("ReadDataSource", tf.ReadDataSourceRequest.encode({ typeName, config }));
      continue;
    }
    add("ValidateResourceTypeConfig", tf.ValidateRequest.encode({ typeName, config: none }));
    add(
      "PlanResourceChange",
      tf.PlanRequest.encode({ typeName, priorState: none, proposedNewState: config, config }),
    );
    add(
      "ApplyResourceChange",
      tf.ApplyRequest.encode({ typeName, priorState: none, plannedState: config, config }),
    );
    add("ReadResource", tf.ReadResourceRequest.encode({ typeName, currentState: config }));
    add(
      "UpgradeResourceState",
      tf.UpgradeRequest.encode({ typeName, version: 1, rawState: { json: json({ id: "x" }) } }),
    );
  }
  add("Configure", tf.ConfigureRequest.encode({ terraformVersion: "1.11" }));
  return seeds;
}

const schedules = [
  "0 9 * * 1-5",
  "*/15 0-6,20 1 JAN-MAR MON",
  "TZ=Europe/Berlin 30 2 * * *",
  "@every 1h30m",
  "@daily",
  "0 0 30 2 *",
];
const patterns = ["^[a-z]+(?:-[a-z0-9]*)*$", "(a|b)*c{2,5}", "\\d+\\.\\w{1,3}", "(?i)x[^\\s]?$", "\\p{L}+"];

export const buildTargets: Target[] = [
  {
    name: "template-archives",
    format: "bytes",
    seeds: archives,
    maxBytes: 16_384,
    dictionary: ["../", "/", "\0", "5", "2", "x", "g", "L", "ustar", "path=../../x\n"].map(utf8),
    repair: repairTar,
    open: archiveInstance,
    inputsPerInstance: 200,
    shortInputs: 60,
  },
  {
    name: "template-source",
    format: "text",
    seeds: [
      utf8(HCL),
      utf8("x = <<EOT\na\nEOT\n"),
      utf8('{"variable":{"x":{"type":"string","default":"y"}}}'),
    ],
    maxBytes: 20_000,
    dictionary: [
      "<<EOT\n",
      "<<-",
      "EOT",
      "${",
      "%{",
      "{",
      "}",
      "[",
      "/*",
      "*/",
      "#",
      '"',
      "\\",
      "\n",
      " ",
    ].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        const found = scanBlocks(text);
        for (const block of found)
          for (const expression of block.attributes.values()) literalValue(expression);
        literalValue(text);
        const variables = outcomeOf(() => {
          const isJson = text.startsWith("{");
          const files = [{ name: isJson ? "a.tf.json" : "a.tf", text }];
          needsInit(files);
          return String(readVariables(files).length);
        }, MeshError);
        return `${found.length} ${variables}`;
      },
    }),
  },
  {
    name: "terraform-messages",
    format: "json",
    seeds: messages.map(json),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const message = parseMessage(new TextDecoder().decode(input));
        assert.ok(!message || message.lines.every((line) => typeof line === "string"));
        if (message?.diagnostic) summarize([message.diagnostic]);
        return `${message?.level} ${message?.lines.length} ${message?.diagnostic !== undefined}`;
      },
    }),
  },
  {
    name: "terraform-plans",
    format: "json",
    seeds: [json(plan), json({ values: plan.planned_values })],
    maxBytes: 20_000,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        let value: ShownPlan;
        try {
          value = JSON.parse(new TextDecoder().decode(input));
        } catch {
          return "no JSON";
        }
        return outcomeOf(() => {
          const resources = [...planResources(value), ...stateResources(value as never)];
          const inputs = extractInputs(resources);
          const extracted = extractResources(resources, graph);
          return `${inputs.parameters.length} ${extracted.resources.length} ${extracted.warnings.length}`;
        }, MeshError);
      },
    }),
  },
  {
    name: "terraform-graphs",
    format: "text",
    seeds: [utf8(GRAPH), utf8('module.m["a.b[0]"].coder_app.x[1]')],
    maxBytes: 20_000,
    dictionary: ['["', '"]', "[", "(", " (", '"', "\\", '" -> "', "module.", "var."].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        const parsed = DependencyGraph.parse(text);
        const near = parsed.nearest("coder_agent.main", "up", () => true);
        return `${near.length} ${withoutKeys(text).length === text.length} ${lastKey(text).length > 0}`;
      },
    }),
  },
  {
    name: "provider-requests",
    format: "bytes",
    seeds: requestSeeds(),
    inputsPerInstance: 1_000,
    open: () => {
      const session = service.newSession();
      return {
        run(input) {
          const name = methods[(input[0] ?? 0) % methods.length];
          const method = service.methods.get(name);
          assert.ok(method);
          return `${name} ${outcomeOf(
            () => {
              const answer = method(input.subarray(1), session);
              return String(answer.length > 0);
              // SyntaxError: a state that is no JSON, which Terraform is told in these words.
            },
            ProviderError,
            SyntaxError,
          )}`;
        },
      };
    },
  },
  {
    name: "provider-values",
    format: "bytes",
    seeds: blocks.slice(0, 8).map(([, block]) => encodeMsgpack(sample(block, true), blockType(block))),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        let words = "";
        for (const [, block] of blocks.slice(0, 8))
          words += `${outcomeOf(() => {
            const type = blockType(block);
            const value = decodeMsgpack(input, type);
            const encoded = encodeMsgpack(value, type);
            assert.deepEqual(encodeMsgpack(decodeMsgpack(encoded, type), type), encoded);
            return typeof value;
          }, ProviderError)} `;
        return words;
      },
    }),
  },
  {
    name: "parameter-patterns",
    format: "text",
    seeds: patterns.map(utf8),
    dictionary: ["(", ")", "{1000}", "*", "+", "?", "[", "]", "^", "\\p{", "(?i)", "|", "(?P<x>"].map(utf8),
    maxBytes: 1_000,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input, random) =>
        outcomeOf(() => {
          const regex = compileRegex(new TextDecoder().decode(input));
          const text = random.pick(["", "abc-def", "a".repeat(300), "x1.2\n😀", "ab".repeat(100)]);
          return String(regex.matches(text));
        }, ProviderError),
    }),
  },
  {
    name: "schedules",
    format: "text",
    seeds: schedules.map(utf8),
    dictionary: ["*", "/", "-", ",", "@every ", "TZ=", "CRON_TZ=UTC ", "0", "59", "L", "ns"].map(utf8),
    maxBytes: 600,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        const problems = `${scriptCronProblem(text) === undefined} ${standardCronProblem(text) === undefined}`;
        const code = outcomeOf(() => {
          const schedule = parseCron(text);
          // Years of days are looked through for what never comes: a check of its own (agent/cron.test.ts).
          if (input.length % 16 !== 0) return schedule.kind;
          const due = nextDue(schedule, 1_700_000_000_000);
          assert.ok(due === undefined || due > 1_700_000_000_000);
          return `${schedule.kind} ${due === undefined}`;
        }, CronError);
        // What the provider accepts, the agent must be able to run.
        if (problems.startsWith("true")) assert.ok(!code.startsWith("ERR"), `accepted, and then ${code}`);
        if (standardCronProblem(text) === undefined) schedulesOverlap(text, "* * * * *");
        return `${problems} ${code}`;
      },
    }),
  },
  {
    name: "go-values",
    format: "text",
    seeds: ["12", "-9223372036854775808", "0x1p-2", "1e9", "true", "http://a.b:1/x?y#z", "inf"].map(utf8),
    dictionary: [utf8("1".repeat(8_000)), utf8("."), utf8("%41"), utf8("[::1]"), utf8("@")],
    maxBytes: 40_000,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        return `${parseGoInt(text) !== undefined} ${isGoFloat(text)} ${parseGoBool(text)} ${urlProblem(text) === undefined}`;
      },
    }),
  },
];
