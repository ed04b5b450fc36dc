// STUN binding requests and responses (RFC 8489): "which address do my packets come from?"
//
//   message    type u16 | length u16 | cookie 21 12 A4 42 | transaction id[12] | attributes[length]     big-endian
//   attribute  type u16 | length u16 | value[length] | padding to a multiple of 4 (not counted in length)
//
//   message types     0x0001 binding request, 0x0101 binding success response
//   attributes used   0x0020 XOR-MAPPED-ADDRESS (0x8020 of drafts), 0x0001 MAPPED-ADDRESS, 0x8022 SOFTWARE,
//                     0x8028 FINGERPRINT: CRC-32 of everything before it, XOR 0x5354554E; the last attribute
//   address           0 | family u8 (1 IPv4, 2 IPv6) | port u16 | address[4 or 16]; the XORed form is XORed with
//                     the cookie and, for IPv6, the transaction id behind it (RFC 8489 section 14.2)
//
// Our request is 40 bytes: SOFTWARE "tailnode" and FINGERPRINT, the only one that deployed DERP servers answer.
// Our server answers every well-formed request, so that WebRTC can use it too.
import { formatIp, parseIp, unmapIp } from "./ip.ts";

export const STUN_HEADER_BYTES = 20;
export const STUN_TX_ID_BYTES = 12;
/** A path that carries no larger datagram carries no STUN (RFC 8489 section 6.1); we read none larger. */
export const MAX_STUN_BYTES = 1_280;
export const DEFAULT_STUN_PORT = 3_478;

const BINDING_REQUEST = 0x0001;
const BINDING_SUCCESS = 0x0101;
const MAPPED_ADDRESS = 0x0001;
const XOR_MAPPED_ADDRESS = 0x0020;
const XOR_MAPPED_ADDRESS_DRAFT = 0x8020;
const SOFTWARE = 0x8022;
const FINGERPRINT = 0x8028;
const FINGERPRINT_XOR = 0x5354554e;
const COOKIE = 0x2112a442;
const FAMILY_IPV4 = 1;
const FAMILY_IPV6 = 2;
const TAILNODE = Uint8Array.from("tailnode", (char) => char.charCodeAt(0));

export interface StunAddress {
  /** Canonical text; never an IPv4-mapped one. */
  address: string;
  port: number;
}

/** Whether a datagram is STUN rather than WireGuard or DTLS, by its cookie; its attributes are not looked at. */
export function isStun(bytes: Uint8Array): boolean {
  return (
    bytes.length >= STUN_HEADER_BYTES &&
    bytes[0] < 0x40 &&
    bytes[4] === 0x21 &&
    bytes[5] === 0x12 &&
    bytes[6] === 0xa4 &&
    bytes[7] === 0x42
  );
}

/** The 40-byte request. `txId`: 12 random bytes, new for each request. */
export function stunBindingRequest(txId: Uint8Array): Uint8Array {
  const out = message(BINDING_REQUEST, txId, 4 + TAILNODE.length + 8);
  const view = viewOf(out);
  view.setUint16(STUN_HEADER_BYTES, SOFTWARE);
  view.setUint16(STUN_HEADER_BYTES + 2, TAILNODE.length);
  out.set(TAILNODE, STUN_HEADER_BYTES + 4);
  const at = out.length - 8;
  view.setUint16(at, FINGERPRINT);
  view.setUint16(at + 2, 4);
  view.setUint32(at + 4, fingerprint(out, at));
  return out;
}

/** @returns undefined for anything but a whole, well-formed request; its fingerprint, if there is one, must be right */
export function parseStunBindingRequest(bytes: Uint8Array): { txId: Uint8Array } | undefined {
  return parse(bytes, BINDING_REQUEST, () => {});
}

/** The response: 32 bytes to an IPv4 address, 44 to an IPv6 one. IPv4-mapped addresses are answered as IPv4. */
export function stunBindingResponse(txId: Uint8Array, { address, port }: StunAddress): Uint8Array {
  const parsed = parseIp(address);
  if (!parsed) throw new RangeError(`"${address}" is no IP address`);
  const ip = unmapIp(parsed);
  const out = message(BINDING_SUCCESS, txId, 8 + ip.length);
  const view = viewOf(out);
  const at = STUN_HEADER_BYTES;
  view.setUint16(at, XOR_MAPPED_ADDRESS);
  view.setUint16(at + 2, 4 + ip.length);
  view.setUint8(at + 5, ip.length === 4 ? FAMILY_IPV4 : FAMILY_IPV6);
  view.setUint16(at + 6, port ^ (COOKIE >>> 16));
  out.set(xored(ip, out), at + 8);
  return out;
}

/** @returns undefined for anything but a whole, well-formed success response that names an address */
export function parseStunBindingResponse(
  bytes: Uint8Array,
): ({ txId: Uint8Array } & StunAddress) | undefined {
  let xor: StunAddress | undefined;
  let plain: StunAddress | undefined;
  const found = parse(bytes, BINDING_SUCCESS, (type, value) => {
    if (type === XOR_MAPPED_ADDRESS || type === XOR_MAPPED_ADDRESS_DRAFT) xor ??= addressOf(value, bytes);
    else if (type === MAPPED_ADDRESS) plain ??= addressOf(value, undefined);
  });
  const mapped = xor ?? plain; // middleboxes rewrite plain addresses they find in packets
  return found && mapped ? { ...found, ...mapped } : undefined;
}

function message(type: number, txId: Uint8Array, attributeBytes: number): Uint8Array {
  if (txId.length !== STUN_TX_ID_BYTES) throw new RangeError("a transaction id has 12 bytes");
  const out = new Uint8Array(STUN_HEADER_BYTES + attributeBytes);
  const view = viewOf(out);
  view.setUint16(0, type);
  view.setUint16(2, attributeBytes);
  view.setUint32(4, COOKIE);
  out.set(txId, 8);
  return out;
}

/** Walks a message of one type. @returns its transaction id, a copy */
function parse(
  bytes: Uint8Array,
  type: number,
  onAttribute: (type: number, value: Uint8Array) => void,
): { txId: Uint8Array } | undefined {
  if (!isStun(bytes) || bytes.length > MAX_STUN_BYTES) return undefined;
  const view = viewOf(bytes);
  if (view.getUint16(0) !== type || STUN_HEADER_BYTES + view.getUint16(2) !== bytes.length) return undefined;
  if (bytes.length % 4 !== 0) return undefined;
  for (let at = STUN_HEADER_BYTES; at < bytes.length; ) {
    // Attributes keep the alignment, so a header is always whole.
    const kind = view.getUint16(at);
    const length = view.getUint16(at + 2);
    const end = at + 4 + length;
    if (end > bytes.length) return undefined;
    if (kind === FINGERPRINT) {
      const isLast = length === 4 && end === bytes.length;
      if (!isLast || view.getUint32(at + 4) !== fingerprint(bytes, at)) return undefined;
    } else onAttribute(kind, bytes.subarray(at + 4, end));
    at = end + ((4 - (length % 4)) % 4);
  }
  return { txId: new Uint8Array(bytes.subarray(8, STUN_HEADER_BYTES)) }; // a Buffer's slice would be a view
}

/** `message`: whose cookie and id the address is XORed with; undefined for a plain one. */
function addressOf(value: Uint8Array, message: Uint8Array | undefined): StunAddress | undefined {
  const length = value[1] === FAMILY_IPV4 ? 4 : value[1] === FAMILY_IPV6 ? 16 : 0;
  if (length === 0 || value.length < 4 + length) return undefined;
  const port = (value[2] << 8) | value[3];
  const ip = value.subarray(4, 4 + length);
  if (!message) return { address: formatIp(ip), port };
  return { address: formatIp(xored(ip, message)), port: port ^ (COOKIE >>> 16) };
}

/** The pad is the cookie and the transaction id, as they stand in the header. */
function xored(ip: Uint8Array, message: Uint8Array): Uint8Array {
  return ip.map((byte, i) => byte ^ message[4 + i]);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

let crcTable: Uint32Array | undefined;

/** CRC-32 (ISO 3309) of `bytes` up to `end`, XORed so that it differs from other protocols' checksums. */
function fingerprint(bytes: Uint8Array, end: number): number {
  if (!crcTable) {
    crcTable = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      let crc = i;
      for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
      crcTable[i] = crc;
    }
  }
  let crc = 0xffffffff;
  for (let i = 0; i < end; i++) crc = crcTable[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff ^ FINGERPRINT_XOR) >>> 0;
}
