// The sealed halves of the DERP handshake: each side proves that it owns its key by opening and making a NaCl box.
// Used by server and client, in Node and in browsers.
import nacl from "tweetnacl";
import { equalBytes } from "../mesh/wire/bytes.ts";
import {
  type ClientInfo,
  decodeClientInfo,
  decodeFrame,
  decodeServerInfo,
  encodeClientInfo,
  encodeFrame,
  encodeServerInfo,
  FRAME,
  KEY_BYTES,
  type ServerInfo,
} from "../mesh/wire/derp.ts";
import { WireError } from "../mesh/wire/errors.ts";

export interface KeyPair {
  publicKey: Uint8Array;
  /** 32 bytes; never logged, never sent. */
  privateKey: Uint8Array;
}

/** A Curve25519 key pair, from a private key or a fresh one. */
export function keyPair(privateKey?: Uint8Array): KeyPair {
  const pair = privateKey ? nacl.box.keyPair.fromSecretKey(privateKey) : nacl.box.keyPair();
  return { publicKey: pair.publicKey, privateKey: pair.secretKey };
}

// Every low-order public key leads to this one shared key, which anybody can compute: it would prove nothing.
const WORTHLESS = nacl.box.before(new Uint8Array(KEY_BYTES), new Uint8Array(KEY_BYTES).fill(1));

/** @throws {WireError} ERR_BAD_VALUE for a public key with which no secret can be shared */
export function sharedKey(publicKey: Uint8Array, privateKey: Uint8Array): Uint8Array {
  const shared = nacl.box.before(publicKey, privateKey);
  if (equalBytes(shared, WORTHLESS)) throw new WireError("ERR_BAD_VALUE", "the key is a low-order point");
  return shared;
}

/** The ClientInfo frame. `nonce`: 24 random bytes, used once. `shared`: of client private and server public key. */
export function sealClientInfo(
  info: ClientInfo,
  clientKey: Uint8Array,
  shared: Uint8Array,
  nonce: Uint8Array,
): Uint8Array {
  const box = nacl.box.after(encodeClientInfo(info), nonce, shared);
  return encodeFrame({ kind: "clientInfo", key: clientKey, nonce, box });
}

/**
 * Opens a ClientInfo body, which proves that its sender owns `key`.
 *
 * @throws {WireError} ERR_FRAME_TRUNCATED, ERR_BAD_VALUE (box, JSON or key)
 */
export function openClientInfo(
  body: Uint8Array,
  serverPrivateKey: Uint8Array,
): { key: Uint8Array; info: ClientInfo; shared: Uint8Array } {
  const frame = decodeFrame(FRAME.clientInfo, body);
  if (frame.kind !== "clientInfo") throw new WireError("ERR_UNEXPECTED_FRAME", "not a ClientInfo");
  const shared = sharedKey(frame.key, serverPrivateKey);
  const json = nacl.box.open.after(frame.box, frame.nonce, shared);
  if (!json) throw new WireError("ERR_BAD_VALUE", "the sender of ClientInfo does not own its key");
  return { key: frame.key.slice(), info: decodeClientInfo(json), shared };
}

/** The ServerInfo frame. */
export function sealServerInfo(info: ServerInfo, shared: Uint8Array, nonce: Uint8Array): Uint8Array {
  const box = nacl.box.after(encodeServerInfo(info), nonce, shared);
  return encodeFrame({ kind: "serverInfo", nonce, box });
}

/** @throws {WireError} ERR_FRAME_TRUNCATED, ERR_BAD_VALUE */
export function openServerInfo(body: Uint8Array, shared: Uint8Array): ServerInfo {
  const frame = decodeFrame(FRAME.serverInfo, body);
  if (frame.kind !== "serverInfo") throw new WireError("ERR_UNEXPECTED_FRAME", "not a ServerInfo");
  const json = nacl.box.open.after(frame.box, frame.nonce, shared);
  if (!json) throw new WireError("ERR_BAD_VALUE", "the relay does not own the key it announced");
  return decodeServerInfo(json);
}
