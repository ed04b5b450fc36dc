// Terminal modes of the client (RFC 4254 section 8) as arguments of stty: neither Node nor node-pty can set them.

/** Control characters. `initial`: what a terminal of node-pty starts with. */
const CHARACTERS: Record<string, { name: string; initial: number }> = {
  VINTR: { name: "intr", initial: 3 },
  VQUIT: { name: "quit", initial: 28 },
  VERASE: { name: "erase", initial: 127 },
  VKILL: { name: "kill", initial: 21 },
  VEOF: { name: "eof", initial: 4 },
  // node-pty writes 255, its BSDs' "none", which on Linux is the character 255: a byte of ÿ would end a line.
  VEOL: { name: "eol", initial: 255 },
  VEOL2: { name: "eol2", initial: 255 },
  VSTART: { name: "start", initial: 17 },
  VSTOP: { name: "stop", initial: 19 },
  VSUSP: { name: "susp", initial: 26 },
  VREPRINT: { name: "rprnt", initial: 18 },
  VWERASE: { name: "werase", initial: 23 },
  VLNEXT: { name: "lnext", initial: 22 },
};

/** Flags every stty knows, with node-pty's start. CS7 and parity are left out: no pseudo-terminal has them. */
const FLAGS: Record<string, boolean> = {
  IGNPAR: false,
  PARMRK: false,
  INPCK: false,
  ISTRIP: false,
  INLCR: false,
  IGNCR: false,
  ICRNL: true,
  IXON: true,
  IXANY: true,
  IXOFF: false,
  IMAXBEL: true,
  IUTF8: true,
  ISIG: true,
  ICANON: true,
  ECHO: true,
  ECHOE: true,
  ECHOK: true,
  ECHONL: false,
  NOFLSH: false,
  TOSTOP: false,
  IEXTEN: true,
  ECHOCTL: true,
  ECHOKE: true,
  OPOST: true,
  ONLCR: true,
  OCRNL: false,
  ONOCR: false,
  ONLRET: false,
};

/** Upper-case terminals, which not every stty still knows; one unknown word and it would set nothing at all. */
const RARE_FLAGS: Record<string, boolean> = { IUCLC: false, XCASE: false, OLCUC: false };

/** RFC 4254 section 8: 255 means "no such character". */
const NO_CHARACTER = 255;
const SPEEDS = new Set([
  ...[
    50, 75, 110, 134, 150, 200, 300, 600, 1_200, 1_800, 2_400, 4_800, 9_600, 19_200, 57_600, 115_200, 230_400,
  ],
  ...[460_800, 921_600],
]);

/** As stty takes a character: itself, ^X, or a number of several digits (one would be the digit itself). */
function character(value: number): string {
  if (value === NO_CHARACTER || value === 0) return "undef";
  if (value < 32) return `^${String.fromCharCode(value + 64)}`;
  if (value === 127) return "^?";
  return value < 127 ? String.fromCharCode(value) : String(value);
}

function flags(modes: Record<string, number>, table: Record<string, boolean>): string[] {
  return Object.entries(table).flatMap(([mode, initial]) => {
    const wanted = modes[mode];
    if (wanted === undefined || (wanted !== 0) === initial) return [];
    return [`${wanted !== 0 ? "" : "-"}${mode.toLowerCase()}`];
  });
}

/**
 * What stty must be told, in calls that succeed or fail apart; only what differs from a fresh terminal. `eol` and
 * `eol2` are always put right.
 */
export function sttyCalls(modes: Record<string, number> = {}): string[][] {
  const common: string[] = [];
  for (const [mode, { name, initial }] of Object.entries(CHARACTERS)) {
    const wanted = modes[mode] ?? (mode === "VEOL" || mode === "VEOL2" ? NO_CHARACTER : undefined);
    if (wanted === undefined || wanted > 255) continue;
    if (wanted === initial && initial !== NO_CHARACTER) continue;
    common.push(name, character(wanted));
  }
  common.push(...flags(modes, FLAGS));
  const calls = [common];
  const rare = flags(modes, RARE_FLAGS);
  if (rare.length > 0) calls.push(rare);
  const speed = modes["TTY_OP_OSPEED"];
  if (speed !== undefined && SPEEDS.has(speed)) calls.push([String(speed)]);
  return calls;
}
