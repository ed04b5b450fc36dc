import { equalBytes } from "../wire/bytes.ts";
import {
  CLOSE_CODES,
  type Hello,
  MAX_GRANT_BYTES,
  SESSION_ID_BYTES,
  SESSION_VERSION,
  sessionTag,
} from "../wire/session.ts";
import { PeerViolation, SessionError } from "./errors.ts";

export interface HandshakeOptions {
  role: "client" | "agent";
  /** Client: 16 random bytes, never used before. */
  sessionId?: Uint8Array;
  /** Client: at most 4,096 bytes. */
  grant?: Uint8Array;
  /** How long the peer should keep the session while it is silent. */
  resumeWindowMs?: number;
  versions?: { min: number; max: number };
}

/** HELLO both ways: which session this is, in which version, who admitted it, and whether the peer knows. */
export class Handshake {
  readonly role: "client" | "agent";
  sessionId: Uint8Array | undefined;
  /** First four bytes of the session id; an agent has it from the first packet on, refused or not. */
  tag: number | undefined;
  version: number | undefined;
  isAccepted: boolean;
  peerHello: Hello | undefined;
  /** Our HELLO: to be sent; sent, and put before every packet; acknowledged. */
  state: "unsent" | "sent" | "acked" = "unsent";
  #grant: Uint8Array;
  /** How long the peer should keep the session while we are silent; said in the next HELLO. */
  resumeWindowMs: number;
  readonly #versions: { min: number; max: number };
  /** Client: the HELLO to be sent, or not yet acknowledged, resumes the session from here. */
  #resumePosition: number | undefined;
  /** Agent: what was resumed with last; the same HELLO again is no news. */
  #resumedWith: { position: number; grant: Uint8Array } | undefined;

  constructor({ role, sessionId, grant, resumeWindowMs, versions }: HandshakeOptions) {
    this.role = role;
    this.isAccepted = role === "client";
    this.#grant = checkedGrant(grant ?? new Uint8Array());
    this.resumeWindowMs = resumeWindowMs ?? 0;
    this.#versions = versions ?? { min: SESSION_VERSION, max: SESSION_VERSION };
    if ((sessionId !== undefined) !== (role === "client"))
      throw new TypeError("a client has a session id, an agent learns it");
    if (sessionId === undefined) return;
    if (sessionId.length !== SESSION_ID_BYTES) throw new TypeError("a session id has 16 bytes");
    this.sessionId = sessionId.slice();
    this.tag = sessionTag(sessionId);
  }

  /** @throws {SessionError} ERR_GRANT_TOO_LARGE */
  setGrant(grant: Uint8Array): void {
    this.#grant = checkedGrant(grant);
  }

  /** What our HELLO says now. @param limits what we accept */
  makeHello(
    limits: Pick<Hello, "maxPacketBytes" | "maxDataBytes" | "maxStreamDataBytes" | "maxStreams">,
  ): Hello {
    return {
      minVersion: this.#versions.min,
      maxVersion: this.#versions.max,
      resume: this.#resumePosition !== undefined,
      sessionId: this.sessionId!,
      ...limits,
      resumeWindowMs: this.resumeWindowMs,
      resumePosition: this.#resumePosition ?? 0,
      grant: this.role === "client" ? this.#grant : new Uint8Array(),
    };
  }

  /**
   * Takes in the peer's HELLO.
   *
   * @param nextNumber the first packet number we never used
   * @returns "first", "resume" when the shell must judge it, "repeated" when it says nothing new
   * @throws {PeerViolation} no common version, another session, or one we don't know
   */
  receive(hello: Hello, nextNumber: number): "first" | "resume" | "repeated" {
    if (this.tag !== sessionTag(hello.sessionId))
      throw new PeerViolation("protocolViolation", "packet and HELLO name different sessions");
    if (this.sessionId && !equalBytes(this.sessionId, hello.sessionId))
      throw new PeerViolation("protocolViolation", "HELLO of another session");
    if (this.peerHello === undefined) {
      this.#receiveFirst(hello);
      return "first";
    }
    if (!hello.resume || this.role !== "agent") return "repeated";
    const { resumePosition: position, grant } = hello;
    if (position > nextNumber) throw new PeerViolation("unknownSession", CLOSE_CODES.unknownSession.text);
    const last = this.#resumedWith;
    if (last?.position === position && equalBytes(last.grant, grant)) return "repeated";
    this.#resumedWith = { position, grant };
    return this.isAccepted ? "resume" : "repeated";
  }

  /** Client: all lanes are gone. The next one starts with HELLO: the agent may have forgotten us. */
  onLanesGone(nextExpected: number): void {
    this.state = "unsent";
    this.#resumePosition = this.peerHello && nextExpected;
  }

  /** @returns whether it was a resume that the agent now knows of */
  onAcked(): boolean {
    const isResumed = this.state !== "acked" && this.#resumePosition !== undefined;
    this.state = "acked";
    this.#resumePosition = undefined;
    return isResumed;
  }

  onLost(): void {
    if (this.state === "sent") this.state = "unsent";
  }

  #receiveFirst(hello: Hello): void {
    if (hello.resume && this.role === "agent")
      throw new PeerViolation("unknownSession", CLOSE_CODES.unknownSession.text);
    const version = Math.min(hello.maxVersion, this.#versions.max);
    if (version < Math.max(hello.minVersion, this.#versions.min)) {
      const ours = `${this.#versions.min} to ${this.#versions.max}`;
      const theirs = `${hello.minVersion} to ${hello.maxVersion}`;
      throw new PeerViolation("version", `session versions ${ours} and ${theirs}: update the older side`);
    }
    this.peerHello = hello;
    this.version = version;
    this.sessionId ??= hello.sessionId;
  }
}

function checkedGrant(grant: Uint8Array): Uint8Array {
  if (grant.length > MAX_GRANT_BYTES)
    throw new SessionError("ERR_GRANT_TOO_LARGE", `a grant has at most ${MAX_GRANT_BYTES} bytes`);
  return grant.slice();
}
