// Terminal modes of a pty-req: RFC 4254 section 8 and, for IUTF8, RFC 8160.
//   (opcode u8 | value u32)* | TTY_OP_END = 0
// Opcodes 160 to 255 have no known length: reading stops there.

const NAMES: Record<number, string> = {
  1: "VINTR",
  2: "VQUIT",
  3: "VERASE",
  4: "VKILL",
  5: "VEOF",
  6: "VEOL",
  7: "VEOL2",
  8: "VSTART",
  9: "VSTOP",
  10: "VSUSP",
  11: "VDSUSP",
  12: "VREPRINT",
  13: "VWERASE",
  14: "VLNEXT",
  15: "VFLUSH",
  16: "VSWTCH",
  17: "VSTATUS",
  18: "VDISCARD",
  30: "IGNPAR",
  31: "PARMRK",
  32: "INPCK",
  33: "ISTRIP",
  34: "INLCR",
  35: "IGNCR",
  36: "ICRNL",
  37: "IUCLC",
  38: "IXON",
  39: "IXANY",
  40: "IXOFF",
  41: "IMAXBEL",
  42: "IUTF8",
  50: "ISIG",
  51: "ICANON",
  52: "XCASE",
  53: "ECHO",
  54: "ECHOE",
  55: "ECHOK",
  56: "ECHONL",
  57: "NOFLSH",
  58: "TOSTOP",
  59: "IEXTEN",
  60: "ECHOCTL",
  61: "ECHOKE",
  62: "PENDIN",
  70: "OPOST",
  71: "OLCUC",
  72: "ONLCR",
  73: "OCRNL",
  74: "ONOCR",
  75: "ONLRET",
  90: "CS7",
  91: "CS8",
  92: "PARENB",
  93: "PARODD",
  128: "TTY_OP_ISPEED",
  129: "TTY_OP_OSPEED",
};

const TTY_OP_END = 0;
const FIRST_UNKNOWN_LENGTH = 160;

/** @returns values by name, the last one if a mode comes twice; what is cut short or has no name is left out */
export function decodeTerminalModes(bytes: Uint8Array): Record<string, number> {
  const modes: Record<string, number> = {};
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at + 5 <= bytes.length; at += 5) {
    const opcode = bytes[at];
    if (opcode === TTY_OP_END || opcode >= FIRST_UNKNOWN_LENGTH) break;
    const name = NAMES[opcode];
    if (name !== undefined) modes[name] = view.getUint32(at + 1);
  }
  return modes;
}

export interface PtyRequestMessage {
  recipient: number;
  wantReply: boolean;
  term: string;
  cols: number;
  rows: number;
  widthPx: number;
  heightPx: number;
  modes: Record<string, number>;
}

const CHANNEL_REQUEST = 98;
const PTY_REQ = Buffer.from("pty-req");
const PTY_REQ_AT = 9;

/**
 * Reads a CHANNEL_REQUEST "pty-req" (RFC 4254 section 6.2).
 *
 * @param payload of one SSH packet
 * @returns undefined when it is another message, or this one cut short
 */
export function decodePtyRequest(payload: Buffer): PtyRequestMessage | undefined {
  const end = PTY_REQ_AT + PTY_REQ.length;
  if (payload.length <= end || payload[0] !== CHANNEL_REQUEST) return undefined;
  if (payload.readUInt32BE(5) !== PTY_REQ.length) return undefined;
  if (PTY_REQ.compare(payload, PTY_REQ_AT, end) !== 0) return undefined;
  let at = end + 1;
  const u32 = () => {
    at += 4;
    return payload.readUInt32BE(at - 4); // RangeError past the end
  };
  const string = () => {
    const length = u32();
    if (length > payload.length - at) throw new RangeError("cut short");
    at += length;
    return payload.subarray(at - length, at);
  };
  try {
    return {
      recipient: payload.readUInt32BE(1),
      wantReply: payload[end] !== 0,
      term: string().toString("latin1"),
      cols: u32(),
      rows: u32(),
      widthPx: u32(),
      heightPx: u32(),
      modes: decodeTerminalModes(string()),
    };
  } catch {
    return undefined;
  }
}
