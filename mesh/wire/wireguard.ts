// WireGuard messages, byte for byte as the paper and every deployed peer have them. Integers are little-endian,
// `reserved` is zero, and a handshake message of any other length is dropped.
//
//   initiation  148 B  type=1 u8 | reserved 3 | sender u32 | ephemeral 32 | static 32+16 | timestamp 12+16 | mac1 16 | mac2 16
//   response     92 B  type=2 u8 | reserved 3 | sender u32 | receiver u32 | ephemeral 32 | nothing 0+16 | mac1 16 | mac2 16
//   cookie reply 64 B  type=3 u8 | reserved 3 | receiver u32 | nonce 24 | cookie 16+16
//   transport 16+n+16  type=4 u8 | reserved 3 | receiver u32 | counter u64 | n bytes sealed, zero-padded to 16 | tag 16
//
// `sender` is an index its sender chose; the other side puts it in `receiver`. Either side starts a handshake
// (initiation, response); a node under load answers either of the two with a cookie reply instead; transport messages
// go both ways. An empty transport message is a keepalive. `sealed` fields carry their 16-byte Poly1305 tag.
// mac1 covers all bytes before it, mac2 all bytes before itself; mac2 is zero without a fresh cookie.
// Counters above 2^53 - 1 are refused: at a million messages a second a key would need 285 years to get there.
// History: WireGuard has one version of this; a change would come as another `type`, which is dropped here.

export const MESSAGE_TYPE = { initiation: 1, response: 2, cookieReply: 3, transport: 4 } as const;

export const INITIATION_BYTES = 148;
export const RESPONSE_BYTES = 92;
export const COOKIE_REPLY_BYTES = 64;
export const TRANSPORT_HEADER_BYTES = 16;
export const TAG_BYTES = 16;
export const MAC_BYTES = 16;
export const KEY_BYTES = 32;
/** What sealing adds to a plaintext that is already a multiple of PADDING_BYTES. */
export const TRANSPORT_OVERHEAD_BYTES = TRANSPORT_HEADER_BYTES + TAG_BYTES;
export const PADDING_BYTES = 16;
/** One DERP packet or datachannel message. */
export const MAX_MESSAGE_BYTES = 65_536;
export const MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TRANSPORT_OVERHEAD_BYTES;

export interface Initiation {
  sender: number;
  /** 32 bytes, as every view below points into the message. */
  ephemeral: Uint8Array;
  /** 32 + 16 bytes. */
  sealedStatic: Uint8Array;
  /** 12 + 16 bytes: a TAI64N timestamp. */
  sealedTimestamp: Uint8Array;
}

export interface Response {
  sender: number;
  receiver: number;
  /** 32 bytes. */
  ephemeral: Uint8Array;
  /** 0 + 16 bytes. */
  sealedNothing: Uint8Array;
}

export interface CookieReply {
  receiver: number;
  /** 24 bytes. */
  nonce: Uint8Array;
  /** 16 + 16 bytes. */
  sealedCookie: Uint8Array;
}

const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** @returns the type of a message whose first four bytes and length are right for it, else undefined: drop it */
export function messageType(message: Uint8Array): 1 | 2 | 3 | 4 | undefined {
  if (message.length < TRANSPORT_OVERHEAD_BYTES || (message[1] | message[2] | message[3]) !== 0)
    return undefined;
  switch (message[0]) {
    case MESSAGE_TYPE.initiation:
      return message.length === INITIATION_BYTES ? 1 : undefined;
    case MESSAGE_TYPE.response:
      return message.length === RESPONSE_BYTES ? 2 : undefined;
    case MESSAGE_TYPE.cookieReply:
      return message.length === COOKIE_REPLY_BYTES ? 3 : undefined;
    case MESSAGE_TYPE.transport:
      return message.length <= MAX_MESSAGE_BYTES ? 4 : undefined;
    default:
      return undefined;
  }
}

/** @returns 148 bytes; both macs are still zero (see `writeMac1`) */
export function encodeInitiation(fields: Initiation): Uint8Array {
  const message = new Uint8Array(INITIATION_BYTES);
  message[0] = MESSAGE_TYPE.initiation;
  view(message).setUint32(4, fields.sender, true);
  message.set(fields.ephemeral, 8);
  message.set(fields.sealedStatic, 40);
  message.set(fields.sealedTimestamp, 88);
  return message;
}

/** @param message one that `messageType` called an initiation */
export function decodeInitiation(message: Uint8Array): Initiation {
  return {
    sender: view(message).getUint32(4, true),
    ephemeral: message.subarray(8, 40),
    sealedStatic: message.subarray(40, 88),
    sealedTimestamp: message.subarray(88, 116),
  };
}

/** @returns 92 bytes; both macs are still zero */
export function encodeResponse(fields: Response): Uint8Array {
  const message = new Uint8Array(RESPONSE_BYTES);
  message[0] = MESSAGE_TYPE.response;
  view(message).setUint32(4, fields.sender, true);
  view(message).setUint32(8, fields.receiver, true);
  message.set(fields.ephemeral, 12);
  message.set(fields.sealedNothing, 44);
  return message;
}

/** @param message one that `messageType` called a response */
export function decodeResponse(message: Uint8Array): Response {
  return {
    sender: view(message).getUint32(4, true),
    receiver: view(message).getUint32(8, true),
    ephemeral: message.subarray(12, 44),
    sealedNothing: message.subarray(44, 60),
  };
}

/** @returns 64 bytes */
export function encodeCookieReply(fields: CookieReply): Uint8Array {
  const message = new Uint8Array(COOKIE_REPLY_BYTES);
  message[0] = MESSAGE_TYPE.cookieReply;
  view(message).setUint32(4, fields.receiver, true);
  message.set(fields.nonce, 8);
  message.set(fields.sealedCookie, 32);
  return message;
}

/** @param message one that `messageType` called a cookie reply */
export function decodeCookieReply(message: Uint8Array): CookieReply {
  return {
    receiver: view(message).getUint32(4, true),
    nonce: message.subarray(8, 32),
    sealedCookie: message.subarray(32, 64),
  };
}

/** Writes the 16 bytes in front of what was sealed behind them. `counter`: 0..2^53 - 1. */
export function writeTransportHeader(message: Uint8Array, receiver: number, counter: number): void {
  writeU32(message, 0, MESSAGE_TYPE.transport);
  writeU32(message, 4, receiver);
  writeU32(message, 8, counter);
  writeU32(message, 12, Math.floor(counter / 0x1_0000_0000));
}

/** The receiver's index of a transport message. */
export const transportReceiver = (message: Uint8Array): number => readU32(message, 4);

/** @returns the counter of a transport message, or undefined above 2^53 - 1: drop it */
export function transportCounter(message: Uint8Array): number | undefined {
  const high = readU32(message, 12);
  return high > 0x1f_ffff ? undefined : high * 0x1_0000_0000 + readU32(message, 8);
}

/** The bytes of an initiation or response that mac1 covers (all before it). */
export const beforeMac1 = (message: Uint8Array): Uint8Array => message.subarray(0, message.length - 32);
/** The bytes of an initiation or response that mac2 covers: mac1 too. */
export const beforeMac2 = (message: Uint8Array): Uint8Array => message.subarray(0, message.length - 16);
export const mac1Of = (message: Uint8Array): Uint8Array =>
  message.subarray(message.length - 32, message.length - 16);
export const mac2Of = (message: Uint8Array): Uint8Array => message.subarray(message.length - 16);

// No DataView here: this runs for every packet.
function writeU32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}

function readU32(bytes: Uint8Array, offset: number): number {
  return (
    (bytes[offset] | (bytes[offset + 1] << 8) | (bytes[offset + 2] << 16) | (bytes[offset + 3] << 24)) >>> 0
  );
}
