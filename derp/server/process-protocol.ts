// What a server and its relay process tell each other. Both are of one build, so this needs no versions.
import type { PublicSigningKey } from "../../mesh/wire/signed.ts";
import type { AdmissionMode } from "./admission.ts";
import type { UpgradeRequest } from "./http.ts";
import type { Metric } from "./metrics.ts";
import type { RateConfig } from "./rate.ts";

/** The port a relay process listens on itself, with TLS. */
export interface RelayListen {
  host: string;
  port: number;
  tls: TlsFiles;
}

export interface TlsFiles {
  /** PEM, the server's certificate first, then the chain. */
  certFiles: readonly string[];
  keyFiles: readonly string[];
  minVersion: "TLSv1.2" | "TLSv1.3";
}

export type ToRelay =
  | {
      kind: "configure";
      privateKey: Uint8Array;
      meshKey: string | undefined;
      admission: AdmissionMode;
      /** The deployment's signing keys; undefined: tickets aren't checked. */
      signingKeys: readonly PublicSigningKey[] | undefined;
      rates: RateConfig;
      listen: RelayListen | undefined;
    }
  /** Comes with the socket. */
  | { kind: "upgrade"; request: UpgradeRequest; head: Uint8Array }
  | { kind: "signingKeys"; keys: readonly PublicSigningKey[] }
  | { kind: "siblings"; urls: string[]; ca: string | undefined }
  | { kind: "health"; problem: string }
  | { kind: "disconnect"; key: Uint8Array }
  | { kind: "closePeer"; key: Uint8Array; nowMs: number }
  | { kind: "closeSubject"; subject: string; nowMs: number }
  | { kind: "rates"; rates: RateConfig }
  | { kind: "reloadCertificates" }
  | { kind: "metrics"; id: number }
  | { kind: "ping" }
  | { kind: "close"; reconnectInMs: number | undefined; tryForMs: number | undefined };

export type FromRelay =
  /** `port`: of its own listener. */
  | { kind: "ready"; port: number | undefined }
  /** It can't do what it was configured for, and ends. */
  | { kind: "failed"; message: string }
  | { kind: "log"; level: "debug" | "info" | "warn"; fields: object; message: string }
  | { kind: "metrics"; id: number; metrics: Metric[] }
  | { kind: "pong" };
