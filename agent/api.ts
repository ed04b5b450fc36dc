import {
  type AgentLifecycleReport,
  type AgentLogBatch,
  AgentManifest,
  type AgentStartup,
} from "../control/contract/agent.ts";
import { MeshError } from "../mesh/wire/errors.ts";

export const REQUEST_TIMEOUT_MS = 15_000;
/** A manifest is some kB; anything near this is not one. */
const MAX_RESPONSE_BYTES = 8 << 20;

export type AgentApiErrorCode =
  | "ERR_TOKEN_REJECTED"
  | "ERR_SERVER_UNREACHABLE"
  | "ERR_SERVER_FAILED"
  | "ERR_REQUEST_REFUSED"
  | "ERR_LOGS_FULL";

/** A request that did not work. All but ERR_REQUEST_REFUSED and ERR_LOGS_FULL may work later. */
export class AgentApiError extends MeshError {
  readonly code: AgentApiErrorCode;
  constructor(code: AgentApiErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  get mayWorkLater(): boolean {
    return this.code !== "ERR_REQUEST_REFUSED" && this.code !== "ERR_LOGS_FULL";
  }
}

/** The control plane, as an agent speaks to it: /api/v2/workspaceagents/me. Single attempts; callers retry. */
export class AgentApi {
  readonly url: string;
  readonly #token: string;
  readonly #fetch: typeof fetch;
  readonly #timeoutMs: number;

  constructor(options: { url: string; token: string; fetch?: typeof fetch; timeoutMs?: number }) {
    this.url = options.url.replace(/\/+$/, "");
    this.#token = options.token;
    this.#fetch = options.fetch ?? fetch;
    this.#timeoutMs = options.timeoutMs ?? REQUEST_TIMEOUT_MS;
  }

  /** @throws {AgentApiError} as every method here */
  async manifest(signal?: AbortSignal): Promise<AgentManifest> {
    const text = await this.#request("GET", "manifest", undefined, signal);
    let body: unknown;
    try {
      body = JSON.parse(text);
    } catch (cause) {
      throw new AgentApiError("ERR_SERVER_FAILED", `${this.url} does not answer as a control plane does`, {
        cause,
      });
    }
    const parsed = AgentManifest.safeParse(body);
    if (!parsed.success) {
      const where = parsed.error.issues.map(({ path }) => path.join(".")).slice(0, 3);
      throw new AgentApiError(
        "ERR_SERVER_FAILED",
        `the manifest is not as this agent expects it (${where.join(", ")}); is the server of another version?`,
      );
    }
    return parsed.data;
  }

  async startup(body: AgentStartup, signal?: AbortSignal): Promise<void> {
    await this.#request("POST", "startup", body, signal);
  }

  async lifecycle(body: AgentLifecycleReport, signal?: AbortSignal): Promise<void> {
    await this.#request("POST", "lifecycle", body, signal);
  }

  /** @throws {AgentApiError} ERR_LOGS_FULL: the agent's log has reached its limit */
  async logs(body: AgentLogBatch, signal?: AbortSignal): Promise<void> {
    await this.#request("PATCH", "logs", body, signal);
  }

  async #request(method: string, name: string, body: unknown, signal?: AbortSignal): Promise<string> {
    const timeout = AbortSignal.timeout(this.#timeoutMs);
    let response: Response;
    let text: string;
    try {
      response = await this.#fetch(`${this.url}/api/v2/workspaceagents/me/${name}`, {
        method,
        headers: {
          "Coder-Session-Token": this.#token,
          Accept: "application/json",
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        redirect: "manual", // a redirect would carry the token to whoever it names
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      });
      text = await boundedText(response);
    } catch (cause) {
      throw new AgentApiError("ERR_SERVER_UNREACHABLE", `${this.url} can't be reached: ${reasonOf(cause)}`, {
        cause,
      });
    }
    if (response.ok) return text;
    throw failureOf(response, name, this.url);
  }
}

function failureOf(response: Response, name: string, url: string): AgentApiError {
  const { status } = response;
  if (status === 401)
    return new AgentApiError(
      "ERR_TOKEN_REJECTED",
      `${url} does not accept this agent's token. While the workspace is being built that is normal; ` +
        "afterwards it means that the workspace was rebuilt or deleted, and this agent is not its agent any more",
    );
  if (status === 413 && name === "logs") return new AgentApiError("ERR_LOGS_FULL", "the agent's log is full");
  if (status >= 300 && status < 400)
    return new AgentApiError(
      "ERR_SERVER_FAILED",
      `${url} redirects to ${response.headers.get("location") ?? "elsewhere"}; set CODER_AGENT_URL to the final address`,
    );
  const code =
    status === 408 || status === 429 || status >= 500 ? "ERR_SERVER_FAILED" : "ERR_REQUEST_REFUSED";
  return new AgentApiError(code, `${url} answered ${name} with status ${status}`);
}

async function boundedText(response: Response): Promise<string> {
  if (!response.body) return "";
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    length += chunk.length;
    if (length > MAX_RESPONSE_BYTES) throw new Error("the answer is too large");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** fetch hides what happened in the cause. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "TimeoutError") return "no answer in time";
  return error.cause instanceof Error ? error.cause.message || error.message : error.message;
}
