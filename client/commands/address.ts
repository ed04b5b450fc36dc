import { CliError } from "../errors.ts";

/** "host:port", "[::1]:3000", ":3000". @throws {CliError} ERR_BAD_ADDRESS */
export function parseAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-f:]+)\]|([^:[\]]*)):(\d{1,5})$/i.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65_535)
    throw new CliError("ERR_BAD_ADDRESS", `"${text}" is no address to listen on`, {
      hint: "Write it as 127.0.0.1:3000",
    });
  return { host: match[1] ?? (match[2] || "0.0.0.0"), port };
}
