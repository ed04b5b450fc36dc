import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import type { X11Request } from "../../mesh/wire/channel.ts";
import { CliError } from "../errors.ts";
import type { Accept } from "./dial.ts";
import { newToken, serveCallback } from "./remote.ts";
import { COOKIE_BYTES, COOKIE_PROTOCOL, CookieReplacer, parseDisplay, parseXauthList } from "./x11.ts";

/** xauth waits for a locked authority file. */
const XAUTH_TIMEOUT_MS = 5_000;
/** As ssh's ForwardX11Timeout: an untrusted cookie that nobody uses ends after this. */
const UNTRUSTED_SECONDS = 1_200;
/** A program that connects and then says nothing. */
const SETUP_TIMEOUT_MS = 30_000;

function xauth(...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile("xauth", args, { timeout: XAUTH_TIMEOUT_MS, maxBuffer: 1 << 20 }, (error, stdout) =>
      error ? reject(error) : resolve(stdout),
    );
  });
}

/** A cookie with which programs may draw and read their own windows only; the X server's SECURITY extension makes it. */
async function untrustedCookie(display: string): Promise<string | undefined> {
  const dir = mkdtempSync(path.join(tmpdir(), "coder-x11-"));
  const file = path.join(dir, "authority");
  try {
    await xauth(
      "-f",
      file,
      "generate",
      display,
      COOKIE_PROTOCOL,
      "untrusted",
      "timeout",
      String(UNTRUSTED_SECONDS),
    );
    return parseXauthList(await xauth("-f", file, "list", display));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/**
 * Lets programs of the session open windows on this machine's display.
 *
 * @param trusted -Y: they may do whatever local programs may. Otherwise (-X) only what the X server lets strangers do
 * @returns what the session's header asks for
 * @throws {CliError} ERR_BAD_DISPLAY, ERR_X11_UNTRUSTED
 */
export async function forwardX11(
  accept: Accept,
  options: { display: string | undefined; trusted: boolean; onProblem(text: string): void },
): Promise<X11Request> {
  const { onProblem, trusted } = options;
  const { target, xauthName, screen } = parseDisplay(options.display);
  let cookie: string | undefined;
  try {
    cookie = trusted
      ? parseXauthList(await xauth("list", xauthName))
      : await untrustedCookie(options.display as string);
  } catch (cause) {
    if (!trusted)
      throw new CliError("ERR_X11_UNTRUSTED", "this X server makes no restricted cookie for -X", {
        cause,
        hint: "Use -Y if you trust the programs of the workspace with your screen and keyboard.",
      });
    onProblem("xauth gave no cookie for the display; the X server may refuse");
  }
  const real = cookie === undefined ? randomBytes(COOKIE_BYTES) : Buffer.from(cookie, "hex");
  const fake = randomBytes(COOKIE_BYTES);
  const token = newToken();
  accept(token, (stream) =>
    swapCookie(
      stream,
      new CookieReplacer(fake, real),
      (rest) => {
        serveCallback(stream, target, onProblem);
        stream.unshift(rest);
      },
      onProblem,
    ),
  );
  return {
    token,
    singleConnection: false,
    authProtocol: COOKIE_PROTOCOL,
    authCookie: fake.toString("hex"),
    screen,
  };
}

function swapCookie(
  stream: Duplex,
  replacer: CookieReplacer,
  onDone: (setup: Uint8Array) => void,
  onProblem: (text: string) => void,
): void {
  const refuse = (why: string) => {
    onProblem(`an X11 connection was refused: ${why}`);
    stream.destroy();
  };
  const timer = setTimeout(() => refuse("it said nothing"), SETUP_TIMEOUT_MS);
  const onClose = () => clearTimeout(timer);
  const onData = (chunk: Uint8Array) => {
    const swap = replacer.push(chunk);
    if (swap.kind === "more") return;
    clearTimeout(timer);
    stream.off("data", onData).off("close", onClose).pause();
    if (swap.kind === "refused") refuse(swap.why);
    else onDone(swap.bytes);
  };
  stream.on("error", () => undefined);
  stream.on("close", onClose).on("data", onData);
}
