import http from "node:http";
import https from "node:https";
import { ADDRESS_ATTEMPT_MS } from "../mesh/node/addresses.ts";
import { ApiError, CliError } from "./errors.ts";

/** The API answers at once or streams elsewhere; this only catches "never". */
const REQUEST_TIMEOUT_MS = 60_000;
const MAX_RESPONSE_BYTES = 64 << 20;

export interface RequestOptions {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Sent as JSON, unless it is bytes: then `contentType` names them. */
  body?: unknown;
  contentType?: string;
  signal?: AbortSignal;
}

/**
 * Calls one server's API. Plain `node:http`, since the first `fetch` of a process costs some 30 ms that
 * every `coder ssh` would pay.
 */
export class ApiClient {
  readonly url: string;
  readonly token: string;
  readonly #agent: http.Agent;

  constructor(url: string, token: string) {
    this.url = url;
    this.token = token;
    const options = { keepAlive: true, autoSelectFamilyAttemptTimeout: ADDRESS_ATTEMPT_MS };
    this.#agent = url.startsWith("https:") ? new https.Agent(options) : new http.Agent(options);
  }

  get<T>(path: string, options: RequestOptions = {}): Promise<T> {
    return this.request<T>(path, { ...options, method: "GET" });
  }

  post<T>(path: string, body?: unknown, options: RequestOptions = {}): Promise<T> {
    return this.request<T>(path, { ...options, method: "POST", body });
  }

  patch<T>(path: string, body: unknown, options: RequestOptions = {}): Promise<T> {
    return this.request<T>(path, { ...options, method: "PATCH", body });
  }

  /**
   * @param path below /api/v2, with its leading slash
   * @throws {ApiError} for a status >= 400 @throws {CliError} ERR_SERVER_UNREACHABLE
   */
  async request<T>(path: string, options: RequestOptions = {}): Promise<T> {
    const method = options.method ?? "GET";
    const isBytes = options.body instanceof Uint8Array;
    const body =
      options.body === undefined
        ? undefined
        : isBytes
          ? (options.body as Uint8Array)
          : JSON.stringify(options.body);
    const headers: http.OutgoingHttpHeaders = { accept: "application/json" };
    if (this.token) headers["coder-session-token"] = this.token;
    if (body !== undefined) {
      headers["content-type"] = options.contentType ?? "application/json";
      headers["content-length"] = Buffer.byteLength(body);
    }
    const { status, text } = await this.#send(
      `${this.url}/api/v2${path}`,
      method,
      headers,
      body,
      options.signal,
    );
    if (status >= 400) throw new ApiError(status, errorBody(text), `${method} ${path}`);
    if (text === "") return undefined as T;
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      throw new CliError("ERR_NOT_CODER", `${this.url} did not answer like a Coder server`, {
        cause,
        hint: "Check the address; is a proxy in between?",
      });
    }
  }

  /** Address for a WebSocket of the API. */
  webSocketUrl(path: string): string {
    return `${this.url.replace(/^http/, "ws")}/api/v2${path}`;
  }

  close(): void {
    this.#agent.destroy();
  }

  #send(
    url: string,
    method: string,
    headers: http.OutgoingHttpHeaders,
    body: string | Uint8Array | undefined,
    signal?: AbortSignal,
  ): Promise<{ status: number; text: string }> {
    const { request } = url.startsWith("https:") ? https : http;
    return new Promise((resolve, reject) => {
      const unreachable = (cause: Error) =>
        reject(
          signal?.aborted
            ? signal.reason
            : new CliError("ERR_SERVER_UNREACHABLE", `cannot reach ${this.url}: ${cause.message}`, {
                cause,
                hint: "Is the server running, and is the address right?",
              }),
        );
      const call = request(
        url,
        { method, headers, agent: this.#agent, signal, timeout: REQUEST_TIMEOUT_MS },
        (response) => {
          const chunks: Buffer[] = [];
          let length = 0;
          response.on("data", (chunk: Buffer) => {
            length += chunk.length;
            if (length > MAX_RESPONSE_BYTES) response.destroy(new Error("the answer is too large"));
            else chunks.push(chunk);
          });
          response.on("end", () =>
            resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString("utf8") }),
          );
          response.on("error", unreachable);
        },
      );
      call.on("timeout", () => call.destroy(new Error(`no answer within ${REQUEST_TIMEOUT_MS / 1000} s`)));
      call.on("error", unreachable);
      call.end(body);
    });
  }
}

/** What an answer says of an error: whoever answers may be a proxy, or no server of ours at all. */
export function errorBody(text: string): ConstructorParameters<typeof ApiError>[1] {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    return {};
  }
  if (!isObject(body)) return {};
  const { message, detail, code, validations } = body;
  return {
    message: textOf(message),
    detail: textOf(detail),
    code: textOf(code),
    validations: (Array.isArray(validations) ? validations : []).flatMap((one: unknown) => {
      if (!isObject(one)) return [];
      const { field, detail } = one;
      return typeof field === "string" && typeof detail === "string" ? [{ field, detail }] : [];
    }),
  };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null;
const textOf = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);
