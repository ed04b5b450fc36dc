// The meta certificate: the last one a relay presents in TLS. It certifies nothing; it carries the relay's key and
// protocol version to clients one round trip before the relay could say them ("fast start").
//
//   self-signed Ed25519 (RFC 8410), serial = protocol version, subject and issuer CN = "derpkey" + 64 hex digits,
//   valid from 30 days ago for 60 days, basicConstraints (critical, no CA) as the only extension
//
// Node can read X.509 but not make it, hence the few DER values (ITU-T X.690) below.
import { generateKeyPairSync, sign } from "node:crypto";
import { toHex } from "../../mesh/wire/bytes.ts";
import { PROTOCOL_VERSION } from "../../mesh/wire/derp.ts";

export const META_CERT_CN_PREFIX = "derpkey";
const VALID_MS = 30 * 24 * 3_600_000;

const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  utf8String: 0x0c,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
  context0: 0xa0,
  context3: 0xa3,
} as const;

const OID_ED25519 = der(TAG.oid, Uint8Array.of(0x2b, 0x65, 0x70)); // 1.3.101.112
const OID_COMMON_NAME = der(TAG.oid, Uint8Array.of(0x55, 0x04, 0x03)); // 2.5.4.3
const OID_BASIC_CONSTRAINTS = der(TAG.oid, Uint8Array.of(0x55, 0x1d, 0x13)); // 2.5.29.19

/** One value in distinguished encoding: tag, length, content. */
export function der(tag: number, ...content: Uint8Array[]): Uint8Array {
  const body = Buffer.concat(content);
  const { length } = body;
  const head = [tag];
  if (length < 0x80) head.push(length);
  else if (length < 0x100) head.push(0x81, length);
  else head.push(0x82, length >> 8, length & 0xff); // up to 64 KiB; a certificate of ours has some 350 bytes
  return Buffer.concat([Uint8Array.from(head), body]);
}

/** The certificate for a relay's 32-byte public key, in DER. `nowMs`: Unix time. */
export function makeMetaCertificate(publicKey: Uint8Array, nowMs: number): Uint8Array {
  const keys = generateKeyPairSync("ed25519"); // signs this once and is forgotten
  const algorithm = der(TAG.sequence, OID_ED25519);
  const name = der(
    TAG.sequence,
    der(
      TAG.set,
      der(
        TAG.sequence,
        OID_COMMON_NAME,
        der(TAG.utf8String, Buffer.from(META_CERT_CN_PREFIX + toHex(publicKey))),
      ),
    ),
  );
  const basicConstraints = der(
    TAG.sequence,
    OID_BASIC_CONSTRAINTS,
    der(TAG.boolean, Uint8Array.of(0xff)),
    der(TAG.octetString, der(TAG.sequence)),
  );
  const toBeSigned = der(
    TAG.sequence,
    der(TAG.context0, der(TAG.integer, Uint8Array.of(2))), // X.509 version 3
    der(TAG.integer, Uint8Array.of(PROTOCOL_VERSION)),
    algorithm,
    name,
    der(TAG.sequence, time(nowMs - VALID_MS), time(nowMs + VALID_MS)),
    name,
    keys.publicKey.export({ type: "spki", format: "der" }),
    der(TAG.context3, der(TAG.sequence, basicConstraints)),
  );
  const signature = sign(null, toBeSigned, keys.privateKey);
  return der(TAG.sequence, toBeSigned, algorithm, der(TAG.bitString, Uint8Array.of(0), signature));
}

/** PEM of the chain with the meta certificate last; `chain` itself stays as it is, since it may be shared. */
export function withMetaCertificate(chain: string, metaCertificate: Uint8Array): string {
  const lines =
    Buffer.from(metaCertificate)
      .toString("base64")
      .match(/.{1,64}/g) ?? [];
  return `${chain.trimEnd()}\n-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}

/** RFC 5280 section 4.1.2.5: two-digit years until 2049, four digits from 2050. */
function time(atMs: number): Uint8Array {
  const digits = new Date(atMs)
    .toISOString()
    .replace(/\.\d+Z$/, "Z")
    .replace(/[-:T]/g, "");
  return Number(digits.slice(0, 4)) < 2050
    ? der(TAG.utcTime, Buffer.from(digits.slice(2)))
    : der(TAG.generalizedTime, Buffer.from(digits));
}
