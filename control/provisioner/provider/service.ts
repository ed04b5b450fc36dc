// The methods of tfplugin5.Provider: bytes in, bytes out. One Session per HTTP/2 connection, because Terraform
// configures each of its provider blocks (aliases) on a connection of its own and tells them apart by nothing else.
import { randomUUID } from "node:crypto";
import type { ProviderContext } from "./context.ts";
import { DATA_SOURCES } from "./data-sources.ts";
import {
  applyResource,
  planResource,
  readDataSource,
  refreshResource,
  upgradeState,
  validate,
} from "./engine.ts";
import { ProviderError } from "./errors.ts";
import { urlProblem } from "./go-syntax.ts";
import { decodeMsgpack, encodeMsgpack } from "./msgpack.ts";
import type { ObservedParameter } from "./parameter.ts";
import { RESOURCES } from "./resources.ts";
import { type Block, blockType, type Call, encodeSchema, error, type Finding, str } from "./schema.ts";
import * as tf from "./tfplugin5.ts";
import { isObject, type ObjectValue, UNKNOWN, valueFromJson } from "./value.ts";

/** The access URL when neither the provider block nor the build names one, as the original has it. */
const FALLBACK_ACCESS_URL = "https://mydeployment.coder.com";
/** Parameters kept for `observed`; a template with more is not one a person could fill in. */
const MAX_OBSERVED = 1000;

const PROVIDER: Block = { attributes: { url: str.optional() } };

export interface Session {
  accessUrl: string;
}

/** What every connection of one socket shares. */
export interface Service {
  newSession(): Session;
  /** By method name; what is missing is unimplemented, which Terraform takes well for all newer methods. */
  methods: ReadonlyMap<string, (request: Uint8Array, session: Session) => Uint8Array>;
  parameters: ReadonlyMap<string, ObservedParameter>;
}

export function createService(context: ProviderContext, newId: () => string = randomUUID): Service {
  const parameters = new Map<string, ObservedParameter>();
  const defaultUrl = context.env.get("CODER_AGENT_URL") || FALLBACK_ACCESS_URL;
  const callOf = (session: Session): Call => ({
    env: context.env,
    accessUrl: session.accessUrl,
    agentTokens: context.agentTokens,
    collect: context.collect ?? false,
    newId,
    observe(parameter) {
      if (parameters.size < MAX_OBSERVED || parameters.has(parameter.name))
        parameters.set(parameter.name, parameter);
    },
  });

  const methods = new Map<string, (request: Uint8Array, session: Session) => Uint8Array>([
    ["GetSchema", () => schemaResponse()],
    [
      "PrepareProviderConfig",
      (bytes) => {
        const { config } = tf.PrepareRequest.decode(bytes);
        return tf.PrepareResponse.encode({
          preparedConfig: dynamic(readObject(config, PROVIDER), PROVIDER),
          diagnostics: diagnostics(providerFindings(config)),
        });
      },
    ],
    [
      "Configure",
      (bytes, session) => {
        const { config } = tf.ConfigureRequest.decode(bytes);
        const url = readObject(config, PROVIDER)?.url ?? null;
        const findings = providerFindings(config);
        if (url === UNKNOWN)
          findings.push(
            error("The url must be known before anything is created: write it out, or use a variable.", [
              "url",
            ]),
          );
        if (typeof url === "string") session.accessUrl = url;
        if (findings.length === 0 && !URL.canParse(session.accessUrl))
          findings.push(error(`${JSON.stringify(session.accessUrl)} is not an absolute URL.`, ["url"]));
        return tf.DiagnosticsResponse.encode({ diagnostics: diagnostics(findings) });
      },
    ],
    ["ValidateResourceTypeConfig", (bytes) => validation(bytes, RESOURCES)],
    ["ValidateDataSourceConfig", (bytes) => validation(bytes, DATA_SOURCES)],
    [
      "UpgradeResourceState",
      (bytes) => {
        const { typeName, rawState } = tf.UpgradeRequest.decode(bytes);
        const resource = lookUp(RESOURCES, typeName);
        const json: unknown = JSON.parse(new TextDecoder().decode(rawState?.json) || "null");
        return tf.UpgradeResponse.encode({ upgradedState: dynamic(upgradeState(resource, json), resource) });
      },
    ],
    [
      "ReadResource",
      (bytes, session) => {
        const request = tf.ReadResourceRequest.decode(bytes);
        const resource = lookUp(RESOURCES, request.typeName);
        const state = refreshResource(resource, readObject(request.currentState, resource), callOf(session));
        return tf.ReadResourceResponse.encode({
          newState: dynamic(state, resource),
          private: request.private,
        });
      },
    ],
    [
      "PlanResourceChange",
      (bytes) => {
        const request = tf.PlanRequest.decode(bytes);
        const resource = lookUp(RESOURCES, request.typeName);
        const { planned, replace } = planResource(
          resource,
          readObject(request.priorState, resource),
          readObject(request.proposedNewState, resource),
          readObject(request.config, resource) ?? {},
        );
        return tf.PlanResponse.encode({
          plannedState: dynamic(planned, resource),
          requiresReplace: replace.map((name) => tf.attributePath([name])),
          plannedPrivate: request.priorPrivate,
        });
      },
    ],
    [
      "ApplyResourceChange",
      (bytes, session) => {
        const request = tf.ApplyRequest.decode(bytes);
        const resource = lookUp(RESOURCES, request.typeName);
        const { state, findings } = applyResource(
          resource,
          readObject(request.priorState, resource),
          readObject(request.plannedState, resource),
          readObject(request.config, resource) ?? {},
          callOf(session),
        );
        return tf.ApplyResponse.encode({
          newState: dynamic(state, resource),
          private: request.plannedPrivate,
          diagnostics: diagnostics(findings),
        });
      },
    ],
    [
      "ReadDataSource",
      (bytes, session) => {
        const request = tf.ReadDataSourceRequest.decode(bytes);
        const source = lookUp(DATA_SOURCES, request.typeName);
        const { state, findings } = readDataSource(
          source,
          readObject(request.config, source) ?? {},
          callOf(session),
        );
        return tf.ReadDataSourceResponse.encode({
          state: dynamic(state, source),
          diagnostics: diagnostics(findings),
        });
      },
    ],
    [
      "ImportResourceState",
      (bytes) => {
        const { typeName } = tf.ImportRequest.decode(bytes);
        const problem = error(
          "It exists only in Terraform's state: add it to the configuration instead.",
          [],
          `${typeName} can't be imported`,
        );
        return tf.ImportResponse.encode({ diagnostics: diagnostics([problem]) });
      },
    ],
    ["Stop", () => new Uint8Array()],
  ]);
  return { newSession: () => ({ accessUrl: defaultUrl }), methods, parameters };
}

/** The schemas never change while we run, and every command of every build asks for them. */
let encodedSchemas: Uint8Array | undefined;

function schemaResponse(): Uint8Array {
  encodedSchemas ??= tf.GetSchemaResponse.encode({
    provider: encodeSchema(PROVIDER, "provider"),
    resourceSchemas: new Map([...RESOURCES].map(([name, block]) => [name, encodeSchema(block, "resource")])),
    dataSourceSchemas: new Map([...DATA_SOURCES].map(([name, block]) => [name, encodeSchema(block, "data")])),
    // Lets Terraform fetch the schemas once per command rather than at each start of the provider.
    capabilities: { getProviderSchemaOptional: true },
  });
  return encodedSchemas;
}

function providerFindings(config: WireValue): Finding[] {
  const url = readObject(config, PROVIDER)?.url;
  if (typeof url !== "string") return [];
  const problem = url === "" ? "it is empty" : urlProblem(url);
  return problem ? [error(`The url can't be used: ${problem}.`, ["url"], "Invalid provider url")] : [];
}

function validation(bytes: Uint8Array, types: ReadonlyMap<string, Block>): Uint8Array {
  const { typeName, config } = tf.ValidateRequest.decode(bytes);
  const block = lookUp(types, typeName);
  const object = readObject(config, block);
  return tf.DiagnosticsResponse.encode({ diagnostics: diagnostics(object ? validate(block, object) : []) });
}

function lookUp<T>(types: ReadonlyMap<string, T>, name: string): T {
  const type = types.get(name);
  if (!type) throw new ProviderError("ERR_PROVIDER_UNKNOWN_TYPE", `the coder provider has no ${name}`);
  return type;
}

type WireValue = { msgpack: Uint8Array; json: Uint8Array } | undefined;

/** @returns null for a null object, which stands for "none" */
function readObject(value: WireValue, block: Block): ObjectValue | null {
  if (!value) return null;
  const type = blockType(block);
  const decoded =
    value.msgpack.length > 0
      ? decodeMsgpack(value.msgpack, type)
      : valueFromJson(JSON.parse(new TextDecoder().decode(value.json) || "null"), type);
  return isObject(decoded) ? decoded : null;
}

const dynamic = (value: ObjectValue | null, block: Block) => ({
  msgpack: encodeMsgpack(value, blockType(block)),
});

function diagnostics(findings: Finding[]) {
  return findings.map(({ severity, summary, detail, path }) => ({
    severity: severity === "error" ? tf.SEVERITY_ERROR : tf.SEVERITY_WARNING,
    summary,
    detail,
    attribute: path.length > 0 ? tf.attributePath(path) : new Uint8Array(),
  }));
}
