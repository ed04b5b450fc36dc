import fs from "node:fs";
import os from "node:os";
import type { X11Request } from "../../mesh/wire/channel.ts";
import { type Listener, type ListenerOptions, listenTcp } from "../forward/listener.ts";
import type { TargetError } from "../forward/target.ts";

/** As sshd: displays below are left to real X servers, and so many are tried. */
export const FIRST_DISPLAY = 10;
export const MAX_DISPLAYS = 1_000;
const X11_BASE_PORT = 6_000;

const FAMILY_LOCAL = 256;
const FAMILY_WILD = 65_535;

function field(bytes: Buffer): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

function entry(family: number, address: string, display: number, protocol: string, cookie: Buffer): Buffer {
  const head = Buffer.alloc(2);
  head.writeUInt16BE(family);
  return Buffer.concat([
    head,
    field(Buffer.from(address)),
    field(Buffer.from(String(display))),
    field(Buffer.from(protocol)),
    field(cookie),
  ]);
}

/**
 * An Xauthority file, as Xau(3) describes it: u16 BE family, then address, display, protocol name and cookie, each
 * after its u16 BE length. One entry for this host, as xauth writes for "unix:N", and one that any address matches.
 */
export function xauthority(display: number, protocol: string, cookieHex: string, hostname: string): Buffer {
  const cookie = Buffer.from(cookieHex, "hex");
  return Buffer.concat([
    entry(FAMILY_LOCAL, hostname, display, protocol, cookie),
    entry(FAMILY_WILD, "", display, protocol, cookie),
  ]);
}

export interface Display {
  listener: Listener;
  env: { DISPLAY: string; XAUTHORITY: string };
}

/**
 * A display whose programs are shown by the client: the first free one from FIRST_DISPLAY, claimed by binding its
 * port on loopback, its cookie in a file of its own (no xauth program needed).
 *
 * @param file where the Xauthority file goes
 * @throws when all displays are taken, or the file can't be written
 */
export async function openDisplay(
  request: X11Request,
  file: string,
  options: Omit<ListenerOptions, "token" | "singleConnection">,
): Promise<Display> {
  let failure: TargetError | undefined;
  for (let display = FIRST_DISPLAY; display < FIRST_DISPLAY + MAX_DISPLAYS; display++) {
    let listener: Listener;
    try {
      listener = await listenTcp("localhost", X11_BASE_PORT + display, {
        ...options,
        token: request.token,
        singleConnection: request.singleConnection,
      });
    } catch (error) {
      failure = error as TargetError;
      if ((failure.cause as NodeJS.ErrnoException | undefined)?.code !== "EADDRINUSE") throw failure;
      continue;
    }
    try {
      const content = xauthority(display, request.authProtocol, request.authCookie, os.hostname());
      fs.writeFileSync(file, content, { mode: 0o600, flag: "wx" });
    } catch (error) {
      listener.close();
      throw error;
    }
    return { listener, env: { DISPLAY: `localhost:${display}.${request.screen}`, XAUTHORITY: file } };
  }
  throw failure;
}
