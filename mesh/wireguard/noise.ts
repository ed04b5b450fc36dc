// Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (Noise revision 34), the handshake alone: no indices, macs or clocks, and
// prologue, payloads, psk and ephemerals are arguments, so that the published vectors run through this very code.
//
//   <- s                       the initiator knows whom it calls
//   -> e, es, s, ss, payload   WireGuard's payload: a TAI64N timestamp
//   <- e, ee, se, psk, payload WireGuard's payload: nothing
//
// Every key made on the way seals exactly once, so each nonce is 0. Functions that read what a peer sent return
// undefined when it does not authenticate and change nothing then: a forged response cannot spoil a handshake.
import { utf8 } from "../wire/bytes.ts";
import { hkdf, type WireGuardCrypto, type X25519KeyPair } from "./crypto.ts";

export const PROTOCOL_NAME = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
export const NO_PSK = new Uint8Array(32);
const NOTHING = new Uint8Array();
const NONCE = new Uint8Array(12);

/** What every handshake of one node shares. */
export interface NoiseContext {
  crypto: WireGuardCrypto;
  prologue: Uint8Array;
  identity: X25519KeyPair;
}

/** Transport keys, 32 bytes each, from this side's view. */
export interface TransportKeys {
  send: Uint8Array;
  receive: Uint8Array;
}

/** CipherState and SymmetricState of Noise section 5, for keys that seal once. */
class SymmetricState {
  #crypto: WireGuardCrypto;
  #chain: Uint8Array;
  #hash: Uint8Array;
  #key: Uint8Array = NOTHING;

  constructor(crypto: WireGuardCrypto, chain: Uint8Array, hash: Uint8Array) {
    this.#crypto = crypto;
    this.#chain = chain;
    this.#hash = hash;
  }

  static start({ crypto, prologue }: NoiseContext, responderStatic: Uint8Array): SymmetricState {
    const name = crypto.hash(utf8(PROTOCOL_NAME)); // longer than 32 bytes, so its hash stands for it
    const state = new SymmetricState(crypto, name, name);
    state.mixHash(prologue);
    state.mixHash(responderStatic);
    return state;
  }

  copy(): SymmetricState {
    return new SymmetricState(this.#crypto, this.#chain, this.#hash); // all values are replaced, never written to
  }

  mixHash(data: Uint8Array): void {
    this.#hash = this.#crypto.hash(this.#hash, data);
  }

  /** MixKey where the key would be replaced before it seals anything. */
  mixChain(input: Uint8Array): void {
    [this.#chain] = hkdf(this.#crypto, this.#chain, input, 1);
  }

  mixKey(input: Uint8Array): void {
    [this.#chain, this.#key] = hkdf(this.#crypto, this.#chain, input, 2);
  }

  mixKeyAndHash(input: Uint8Array): void {
    const [chain, hash, key] = hkdf(this.#crypto, this.#chain, input, 3);
    this.#chain = chain;
    this.mixHash(hash);
    this.#key = key;
  }

  /** An `e` token of a handshake with a psk: mixed into both (Noise section 9.2). */
  mixEphemeral(publicKey: Uint8Array): void {
    this.mixHash(publicKey);
    this.mixChain(publicKey);
  }

  seal(plaintext: Uint8Array): Uint8Array {
    const sealed = this.#crypto.seal(this.#key, NONCE, plaintext, this.#hash);
    this.mixHash(sealed);
    return sealed;
  }

  open(sealed: Uint8Array): Uint8Array | undefined {
    const plaintext = this.#crypto.open(this.#key, NONCE, sealed, this.#hash);
    if (plaintext) this.mixHash(sealed);
    return plaintext;
  }

  /** @returns the key of what the initiator sends, then of what the responder sends */
  split(): [Uint8Array, Uint8Array] {
    const [first, second] = hkdf(this.#crypto, this.#chain, NOTHING, 2);
    return [first, second];
  }
}

/** An initiator that waits for the response. */
export interface SentInitiation {
  state: SymmetricState;
  ephemeral: X25519KeyPair;
}

/** A responder that has read an initiation. */
export interface ReceivedInitiation {
  state: SymmetricState;
  remoteStatic: Uint8Array;
  remoteEphemeral: Uint8Array;
  payload: Uint8Array;
}

/**
 * @param peer.shared our static key with the peer's: it never changes, so callers keep it
 * @returns undefined when the peer's static key is a point of low order
 */
export function writeInitiation(
  context: NoiseContext,
  peer: { publicKey: Uint8Array; shared: Uint8Array },
  ephemeral: X25519KeyPair,
  payload: Uint8Array,
): (SentInitiation & { sealedStatic: Uint8Array; sealedPayload: Uint8Array }) | undefined {
  const ephemeralStatic = ephemeral.shared(peer.publicKey);
  if (!ephemeralStatic) return undefined;
  const state = SymmetricState.start(context, peer.publicKey);
  state.mixEphemeral(ephemeral.publicKey);
  state.mixKey(ephemeralStatic);
  const sealedStatic = state.seal(context.identity.publicKey);
  state.mixKey(peer.shared);
  const sealedPayload = state.seal(payload);
  return { state, ephemeral, sealedStatic, sealedPayload };
}

/**
 * @param staticShared called with the initiator's static key, before it is proven: returns our static key with it,
 *   or undefined to refuse (then nothing more is computed)
 */
export function readInitiation(
  context: NoiseContext,
  message: { ephemeral: Uint8Array; sealedStatic: Uint8Array; sealedPayload: Uint8Array },
  staticShared: (remoteStatic: Uint8Array) => Uint8Array | undefined,
): ReceivedInitiation | undefined {
  const ephemeralStatic = context.identity.shared(message.ephemeral);
  if (!ephemeralStatic) return undefined;
  const state = SymmetricState.start(context, context.identity.publicKey);
  state.mixEphemeral(message.ephemeral);
  state.mixKey(ephemeralStatic);
  const remoteStatic = state.open(message.sealedStatic);
  if (!remoteStatic) return undefined;
  const shared = staticShared(remoteStatic);
  if (!shared) return undefined;
  state.mixKey(shared);
  const payload = state.open(message.sealedPayload);
  if (!payload) return undefined;
  return { state, remoteStatic, remoteEphemeral: new Uint8Array(message.ephemeral), payload };
}

/** @returns undefined when a key the initiator sent is a point of low order */
export function writeResponse(
  received: ReceivedInitiation,
  ephemeral: X25519KeyPair,
  psk: Uint8Array,
  payload: Uint8Array,
): { sealedPayload: Uint8Array; keys: TransportKeys } | undefined {
  const bothEphemeral = ephemeral.shared(received.remoteEphemeral);
  const staticEphemeral = ephemeral.shared(received.remoteStatic);
  if (!bothEphemeral || !staticEphemeral) return undefined;
  const state = received.state.copy();
  state.mixEphemeral(ephemeral.publicKey);
  state.mixChain(bothEphemeral);
  state.mixChain(staticEphemeral);
  state.mixKeyAndHash(psk);
  const sealedPayload = state.seal(payload);
  const [receive, send] = state.split();
  return { sealedPayload, keys: { send, receive } };
}

export function readResponse(
  context: NoiseContext,
  sent: SentInitiation,
  message: { ephemeral: Uint8Array; sealedPayload: Uint8Array },
  psk: Uint8Array,
): { payload: Uint8Array; keys: TransportKeys } | undefined {
  const bothEphemeral = sent.ephemeral.shared(message.ephemeral);
  const staticEphemeral = context.identity.shared(message.ephemeral);
  if (!bothEphemeral || !staticEphemeral) return undefined;
  const state = sent.state.copy();
  state.mixEphemeral(message.ephemeral);
  state.mixChain(bothEphemeral);
  state.mixChain(staticEphemeral);
  state.mixKeyAndHash(psk);
  const payload = state.open(message.sealedPayload);
  if (!payload) return undefined;
  const [send, receive] = state.split();
  return { payload, keys: { send, receive } };
}
