// The sealed halves of the DERP handshake: each side proves that it owns its key by opening and making a NaCl box.
// Used by server and client, in Node and in browsers.
import nacl from "tweetnacl";
import { nativeKeyPair } from "../mesh/node/x25519.ts";
import { equalBytes, fromHex, utf8 } from "../mesh/wire/bytes.ts";
import { isCanonicalPublicKey } from "../mesh/wire/curve.ts";
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
export function keyPair(privateKey: Uint8Array = nacl.randomBytes(KEY_BYTES)): KeyPair {
  const secret = checked(privateKey).slice();
  const publicKey = nativeKeyPair(secret)?.publicKey ?? nacl.box.keyPair.fromSecretKey(secret).publicKey;
  return { publicKey, privateKey: secret };
}

function checked(key: Uint8Array): Uint8Array {
  if (key.length !== KEY_BYTES) throw new RangeError(`a key is ${KEY_BYTES} bytes, not ${key.length}`);
  return key;
}

/**
 * Every low-order public key leads to this one shared key, which anybody can compute: it would prove nothing.
 * HSalsa20 of 32 zero bytes; a constant, because to compute it takes 20 ms at each start.
 */
export const WORTHLESS = fromHex("351f86faa3b988468a850122b65b0acece9c4826806aeee63de9c0da2bd7f91e");

/** Not among tweetnacl's published types: out, in (16 bytes), key, constant. */
const { crypto_core_hsalsa20: hsalsa20 } = (
  nacl as typeof nacl & {
    lowlevel: {
      crypto_core_hsalsa20(out: Uint8Array, input: Uint8Array, key: Uint8Array, c: Uint8Array): void;
    };
  }
).lowlevel;
const SIGMA = utf8("expand 32-byte k");

/** What boxes between two keys are sealed with. @throws {WireError} ERR_BAD_VALUE for a public key with which no secret can be shared */
export function sharedKey(publicKey: Uint8Array, privateKey: Uint8Array): Uint8Array {
  const pair = nativeKeyPair(checked(privateKey));
  if (!pair) return portableSharedKey(publicKey, privateKey);
  const secret = pair.shared(checked(publicKey));
  if (!secret) throw lowOrder();
  const shared = new Uint8Array(KEY_BYTES);
  hsalsa20(shared, new Uint8Array(16), secret, SIGMA);
  return shared;
}

/** The same where there is no node:crypto: 50 times slower. */
export function portableSharedKey(publicKey: Uint8Array, privateKey: Uint8Array): Uint8Array {
  const shared = nacl.box.before(publicKey, privateKey);
  if (equalBytes(shared, WORTHLESS)) throw lowOrder();
  return shared;
}

const lowOrder = () => new WireError("ERR_BAD_VALUE", "the key is a low-order point");

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
  if (!isCanonicalPublicKey(frame.key))
    throw new WireError("ERR_BAD_VALUE", "the key is another spelling of a public key");
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
