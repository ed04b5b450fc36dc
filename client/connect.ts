import { generateKeyPairSync } from "node:crypto";
import type { Duplex } from "node:stream";
import {
  CoordinatorClient,
  CoordinatorError,
  type GrantTarget,
  type ReachedGrant,
  verifyEd25519,
} from "../coordinator/client.ts";
import type { EarlyDial } from "../derp/client/early.ts";
import type { RelayClient } from "../derp/client/regions.ts";
import type { MeshLogger, MeshNode, MeshStream, PathInfo, PeerEvent } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";
import { MeshError } from "../mesh/wire/errors.ts";
import type { CallbackMetadata } from "../mesh/wire/forward.ts";
import { CliError, EXIT } from "./errors.ts";
import type { ApiClient } from "./http.ts";
import { say } from "./output.ts";

/** What was asked for before its agent was dialled is good for this long: later, the agent may be elsewhere. */
const FORESEEN_MS = 5_000;

/** Asks for the grant together with the first hello, so that the dial which comes right after finds it there. */
class EarlyCoordinator extends CoordinatorClient {
  #foreseen: { grant: ReachedGrant; at: number } | undefined;

  async foresee(target: GrantTarget): Promise<ReachedGrant> {
    const grant = await super.requestGrant(target);
    // An agent that is not there is asked for again, with whoever waits for it already listening.
    if (grant.record) this.#foreseen = { grant, at: performance.now() };
    return grant;
  }

  override async requestGrant(target: string | GrantTarget, signal?: AbortSignal): Promise<ReachedGrant> {
    const foreseen = this.#foreseen;
    if (typeof target === "string" && foreseen?.grant.agentId === target) {
      this.#foreseen = undefined;
      if (performance.now() - foreseen.at < FORESEEN_MS) return foreseen.grant;
    }
    return await super.requestGrant(target, signal);
  }
}

/** A node and the relays it uses. */
interface Core {
  node: MeshNode;
  relay: RelayClient;
}

/** This process as a node of the mesh. */
export interface Mesh {
  /** Comes a moment later: its code is loaded while the coordinator's first answer is on its way. */
  readonly core: Promise<Core>;
  /** The grant asked for at the start (`MeshOptions.ask`). Rejects also when the first try to connect fails. */
  readonly asked: Promise<ReachedGrant> | undefined;
  /** @param options as MeshNode.close */
  close(options?: { deliver?: boolean }): Promise<void>;
}

/** An agent within reach. */
export interface AgentConnection {
  readonly agentId: string;
  /**
   * Opens a stream to a service of the agent; it can be written to at once. Goes to a new session when the last one died.
   *
   * @throws {CliError} with exit code 255, the reason, and what to do; the signal's reason
   */
  dial(service: string, metadata?: Uint8Array, signal?: AbortSignal): Promise<MeshStream>;
  /** Lets this agent open callbacks that carry `token` (16 random bytes in base64). @returns ends it */
  accept(token: string, handler: (stream: Duplex, metadata: CallbackMetadata) => void): () => void;
  /** How the session is doing: stalls, resumptions, changes of path. @returns ends it */
  watch(listener: (event: PeerEvent) => void): () => void;
  ping(timeoutMs?: number): Promise<{ rttMs: number; via: string; path: PathInfo["kind"]; region: number }>;
}

export interface MeshOptions {
  /** Gets what happens to the connection and why, for a log file. */
  logger?: MeshLogger;
  /** Whose agent is going to be dialled: its grant is asked for in the first flight. */
  ask?: GrantTarget;
}

/**
 * Starts a node for this command. Coordinator and relay are connected in the background; failures show when they are
 * needed.
 */
export function startMesh(api: Pick<ApiClient, "url" | "token">, { logger, ask }: MeshOptions = {}): Mesh {
  const { privateKey, nodeKey } = freshIdentity();
  let map: DerpMapLike | undefined;
  let relay: RelayClient | undefined;
  let firstTryFailed: (error: Error) => void = () => undefined;
  const coordinator = new EarlyCoordinator({
    url: `${api.url}/api/v2/mesh/coordinate`,
    token: api.token,
    nodeKey,
    leavesAtOnce: true,
    onRelayMap: (newest) => {
      map = newest as unknown as DerpMapLike;
      relay?.setMap(map);
    },
    onState: ({ connected, error }) => {
      logger?.debug({ connected, error: error?.message }, "coordinator connection");
      if (!connected) firstTryFailed(error ?? unreachable());
    },
  });
  // Whoever needs the connection waits for it, and hears the reason, again. In one turn with the request for the grant:
  // both leave together.
  coordinator.connect().catch(() => undefined);
  const asked =
    ask &&
    Promise.race([
      coordinator.foresee(ask),
      new Promise<never>((_, reject) => {
        firstTryFailed = reject;
      }),
    ]);
  asked?.catch(() => undefined);

  let early: EarlyDial | undefined;
  const load = async (): Promise<Core> => {
    // The coordinator's request leaves first; what follows takes longer to load than many a round trip.
    await new Promise(setImmediate);
    early = (await import("../derp/client/early.ts")).earlyDial(api.url);
    const [{ RelayClient }, { MeshNode }] = await Promise.all([
      import("../derp/client/regions.ts"),
      import("../mesh/node/node.ts"),
    ]);
    relay = new RelayClient({
      privateKey,
      accessUrl: api.url,
      map,
      early,
      // Asked for at each connection: the coordinator renews it.
      ticket: () => coordinator.relayTicket,
    });
    const node = new MeshNode({
      role: "client",
      privateKey,
      relay,
      coordinator,
      verify: verifyEd25519,
      logger,
    });
    if (logger) logRelays(relay, logger);
    return { node, relay };
  };
  const core = load();
  core.catch(() => undefined);
  return {
    core,
    asked,
    close: async (options) => {
      const { node } = await core;
      early?.close();
      await node.close(options);
    },
  };
}

/** As mesh/node's, without loading it. */
function freshIdentity(): { privateKey: Uint8Array; nodeKey: string } {
  const { d, x } = generateKeyPairSync("x25519").privateKey.export({ format: "jwk" });
  return {
    privateKey: new Uint8Array(Buffer.from(d as string, "base64url")),
    nodeKey: Buffer.from(x as string, "base64url").toString("base64"),
  };
}

function logRelays(relay: RelayClient, logger: MeshLogger): void {
  relay.onHealth = (region, problem) => logger.debug({ region, problem }, "relay health");
  const { onState } = relay;
  relay.onState = (state) => {
    logger.debug({ ...state, error: state.error?.message }, "relay connection");
    onState?.(state);
  };
}

export interface AgentTarget {
  agentId: string;
  /** For messages: "workspace dev". */
  what: string;
  /** How long the agent keeps our session while we are silent; the node's default otherwise. */
  resumeWindowMs?: number;
  /** For an agent that is not there: the template's `connection_timeout`. 0 or absent: for ever. */
  waitSeconds?: number;
  signal?: AbortSignal;
}

/** The way to an agent; nothing is done before it is used. */
export async function agentConnection(mesh: Mesh, target: AgentTarget): Promise<AgentConnection> {
  const { agentId, what, resumeWindowMs } = target;
  const { node, relay } = await mesh.core;
  return {
    agentId,
    dial: (service, metadata, signal) =>
      untilTimeout({ ...target, signal: signal ?? target.signal }, (until) =>
        node.dial(agentId, service, {
          metadata,
          resumeWindowMs,
          signal: until,
          onWait: () => sayWaiting(what),
        }),
      ),
    accept: (token, handler) => node.accept(agentId, token, handler),
    watch: (listener) => node.watch(agentId, listener),
    ping: async (timeoutMs) => {
      const { rttMs, path } = await node.ping(agentId, timeoutMs);
      const via = `via relay ${relay.regionName(path.region)} (${path.region})`;
      return { rttMs, via, path: path.kind, region: path.region };
    },
  };
}

/**
 * Reaches an agent and waits until it has let us in: a round trip more than dialling at once, and a better moment to hear
 * why not.
 *
 * @throws {CliError} with exit code 255, the reason, and what to do; the signal's reason
 */
export async function connectToAgent(mesh: Mesh, target: AgentTarget): Promise<AgentConnection> {
  const { agentId, what, resumeWindowMs } = target;
  const { node } = await mesh.core;
  await untilTimeout(target, (until) =>
    node.connect(agentId, { signal: until, resumeWindowMs, onWait: () => sayWaiting(what) }),
  );
  return await agentConnection(mesh, target);
}

const sayWaiting = (what: string) => say(`==> Waiting for the agent of ${what} to connect`);

async function untilTimeout<T>(
  { what, waitSeconds = 0, signal }: Pick<AgentTarget, "what" | "waitSeconds" | "signal">,
  act: (until: AbortSignal) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  const end = new AbortController();
  let isLate = false;
  const timer =
    waitSeconds > 0
      ? setTimeout(() => {
          isLate = true;
          end.abort();
        }, waitSeconds * 1_000)
      : undefined;
  const onAbort = () => end.abort(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await act(end.signal);
  } catch (error) {
    if (isLate)
      throw new CliError("ERR_AGENT_TIMEOUT", `the agent of ${what} did not connect in ${waitSeconds} s`, {
        hint: "Its log in the workspace says why. `coder stop` and `coder start` replace it.",
        exitCode: EXIT.connection,
      });
    throw signal?.aborted ? error : explain(error, what);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}

const unreachable = () =>
  new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "the coordinator can't be reached");

const HINTS: Record<string, string> = {
  ERR_UNAUTHORIZED: "Log in with `coder login`.",
  ERR_COORDINATOR_UNREACHABLE: "Is the server running, and do proxies on the way let WebSockets through?",
  ERR_PEER_UNREACHABLE: "The agent may be stuck: look at its log, or restart the workspace.",
  ERR_RELAY_CONNECT: "Do proxies on the way let `Upgrade: DERP` through?",
};

function explain(error: unknown, what: string): unknown {
  if (!(error instanceof MeshError)) return error;
  return new CliError(error.code, `cannot reach ${what}: ${error.message}`, {
    cause: error,
    hint: HINTS[error.code],
    exitCode: EXIT.connection,
  });
}
