// TLS to a relay: whom the relay map says to trust, and the relay's own key that its certificates may carry.
import { createHash, type X509Certificate } from "node:crypto";
import { isIP, type Socket } from "node:net";
import tls, { type ConnectionOptions, type TLSSocket } from "node:tls";
import { fromHex } from "../../mesh/wire/bytes.ts";
import { RelayError } from "./errors.ts";

export interface TrustOptions {
  /** Asked for (SNI) and, unless certName says otherwise, verified; without brackets. */
  host: string;
  /** Verify this name instead; or `sha256-raw:<64 hex>`: exactly this certificate, and no authority. */
  certName?: string;
  /** A certificate authority in PEM beside the system's. */
  ca?: string;
  /** Takes any certificate. Only for a map that says so. */
  insecure?: boolean;
}

const RAW_PIN = "sha256-raw:";
/** Certificates looked at of what a relay presents; chains are three or four long. */
const MAX_CERTIFICATES = 16;

/** Options of tls.connect; `verifyPin` does the rest for a pinned certificate. */
export function tlsOptions({ host, certName, ca, insecure }: TrustOptions): ConnectionOptions {
  const pinned = certName?.startsWith(RAW_PIN) ?? false;
  return {
    host,
    servername: isIP(host) ? "" : host,
    ALPNProtocols: ["http/1.1"],
    minVersion: "TLSv1.2",
    rejectUnauthorized: !insecure && !pinned,
    ...(ca && { ca: [...systemAuthorities(), ca] }),
    ...(certName &&
      !pinned && { checkServerIdentity: (_host, cert) => tls.checkServerIdentity(certName, cert) }),
  };
}

/**
 * Speaks TLS over a connected socket.
 *
 * @throws {RelayError} ERR_RELAY_TLS, or the signal's reason
 */
export function startTls(
  socket: Socket,
  options: ConnectionOptions,
  signal: AbortSignal,
): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    if (socket.destroyed) {
      reject(new RelayError("ERR_RELAY_UNREACHABLE", `${options.host} closed the connection at once`));
      return;
    }
    const secured = tls.connect({ ...options, socket });
    const settle = (error: unknown): void => {
      signal.removeEventListener("abort", onAbort);
      secured.off("error", onError).off("close", onClose);
      if (error === undefined) {
        resolve(secured);
        return;
      }
      secured.on("error", () => {}); // of the destruction
      secured.destroy();
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => settle(signal.reason);
    const onError = (cause: Error): void =>
      settle(new RelayError("ERR_RELAY_TLS", `TLS with ${options.host} failed: ${cause.message}`, { cause }));
    const onClose = (): void =>
      settle(
        new RelayError("ERR_RELAY_TLS", `${options.host} closed the connection during the TLS handshake`),
      );
    secured.once("secureConnect", () => settle(undefined));
    secured.on("error", onError).on("close", onClose);
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
  });
}

/**
 * Checks a pinned certificate: beside meta certificates exactly one is presented, it is the pinned one, valid today,
 * and for `host` unless that is empty. Other `certName`s have been checked by TLS itself.
 *
 * @throws {RelayError} ERR_RELAY_TLS
 */
export function verifyPin(
  presented: X509Certificate[],
  { host, certName }: TrustOptions,
  nowMs: number,
): void {
  if (!certName?.startsWith(RAW_PIN)) return;
  const own = presented.filter((certificate) => metaKey(certificate) === undefined);
  const fail = (reason: string): never => {
    throw new RelayError("ERR_RELAY_TLS", `the relay ${host} is not the one the relay map pins: ${reason}`);
  };
  if (own.length !== 1) fail(`it presents ${own.length} certificates instead of one`);
  const [certificate] = own;
  const digest = createHash("sha256").update(certificate.raw).digest("hex");
  if (digest !== certName.slice(RAW_PIN.length).toLowerCase())
    fail(`its certificate is sha256-raw:${digest}`);
  if (nowMs < Date.parse(certificate.validFrom) || nowMs > Date.parse(certificate.validTo))
    fail(`its certificate is valid from ${certificate.validFrom} to ${certificate.validTo}`);
  const named = isIP(host) ? certificate.checkIP(host) : certificate.checkHost(host);
  if (host !== "" && !named) fail("its certificate is for another name");
}

/** What the relay presented, in order; getPeerCertificate would hide certificates that no chain leads to. */
export function presentedCertificates(socket: TLSSocket): X509Certificate[] {
  const found: X509Certificate[] = [];
  let certificate = socket.getPeerX509Certificate();
  while (certificate && found.length < MAX_CERTIFICATES) {
    const { raw } = certificate;
    if (found.some((one) => one.raw.equals(raw))) break; // a self-signed one is its own issuer
    found.push(certificate);
    certificate = certificate.issuerCertificate;
  }
  return found;
}

/**
 * The relay's node key, if one of its certificates names it (subject CN `derpkey<64 hex>`, the serial is the protocol
 * version). A hint: only a relay that owns the key can open what is sealed for it.
 */
export function relayKeyOf(presented: X509Certificate[]): Uint8Array | undefined {
  for (const certificate of presented) {
    const key = metaKey(certificate);
    if (key) return key;
  }
  return undefined;
}

function metaKey(certificate: X509Certificate): Uint8Array | undefined {
  const hex = /^CN=derpkey([0-9a-f]{64})$/m.exec(certificate.subject ?? "")?.[1];
  const version = Number.parseInt(certificate.serialNumber, 16);
  return hex !== undefined && version >= 1 && version <= 0xff ? fromHex(hex) : undefined;
}

/** Giving `ca` replaces the defaults; newer Node can name them, with NODE_EXTRA_CA_CERTS and the like in them. */
function systemAuthorities(): readonly string[] {
  const newer = tls as typeof tls & { getCACertificates?: (type: "default") => string[] };
  return newer.getCACertificates?.("default") ?? tls.rootCertificates;
}
