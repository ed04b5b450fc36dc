// TLS of a server that carries a relay: certificates from files, the relay's meta certificate behind them.
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { MeshError } from "../../mesh/wire/errors.ts";
import { makeMetaCertificate, withMetaCertificate } from "./meta-cert.ts";
import type { TlsFiles } from "./process-protocol.ts";

export class TlsError extends MeshError {
  readonly code = "ERR_TLS_FILES";
}

export interface TlsOptions {
  cert: string[];
  key: string[];
  minVersion: "TLSv1.2" | "TLSv1.3";
  /** DERP is an upgrade of HTTP/1.1; HTTP/2 has none. */
  ALPNProtocols: ["http/1.1"];
}

/**
 * Reads certificates and keys, and checks that they belong together, so that a half-written file is never put to use.
 *
 * @param relayKey the relay's public key, 32 bytes
 * @param nowMs Unix time, for the meta certificate
 * @throws {TlsError} ERR_TLS_FILES, naming the file
 */
export function readTls(
  { certFiles, keyFiles, minVersion }: TlsFiles,
  relayKey: Uint8Array,
  nowMs: number,
): TlsOptions {
  if (certFiles.length === 0 || certFiles.length !== keyFiles.length)
    throw new TlsError(
      `TLS needs a key for each certificate; given are ${certFiles.length} --tls-cert-file and ${keyFiles.length} --tls-key-file`,
    );
  const meta = makeMetaCertificate(relayKey, nowMs);
  const cert: string[] = [];
  const key: string[] = [];
  for (const [i, certFile] of certFiles.entries()) {
    const chain = read(certFile);
    cert.push(withMetaCertificate(chain, meta));
    key.push(read(keyFiles[i]));
    try {
      if (!new X509Certificate(chain).checkPrivateKey(createPrivateKey(key[i])))
        throw new Error("the key is another one's");
      createSecureContext({ cert: cert[i], key: key[i] });
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new TlsError(`${certFile} and ${keyFiles[i]} are no certificate (PEM) with its key: ${why}`, {
        cause,
      });
    }
  }
  return { cert, key, minVersion, ALPNProtocols: ["http/1.1"] };
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new TlsError(`can't read a TLS file: ${why}`, { cause });
  }
}
