// The `coder/coder` Terraform provider, run inside this process: Terraform is told the socket through
// TF_REATTACH_PROVIDERS instead of starting a plugin, which saves most of a command's time and keeps the build's
// secrets out of every environment.
import { randomBytes } from "node:crypto";
import { lstat, rm } from "node:fs/promises";
import path from "node:path";
import type { ProviderContext } from "./context.ts";
import { ProviderError } from "./errors.ts";
import { serveGrpc } from "./grpc.ts";
import type { ObservedParameter } from "./parameter.ts";
import { createService } from "./service.ts";

export { type ContextOptions, contextFromJob, type JobMetadata, type ProviderContext } from "./context.ts";
export { ProviderError } from "./errors.ts";
export type { ObservedParameter } from "./parameter.ts";

/** sockaddr_un.sun_path without its final zero: 108 on Linux, 104 on macOS and the BSDs. */
const MAX_SOCKET_PATH_BYTES = process.platform === "linux" ? 107 : 103;
const PROVIDER_ADDRESS = "registry.terraform.io/coder/coder";

export interface RunningProvider {
  /** The value for TF_REATTACH_PROVIDERS in the environment of every terraform command of this build. */
  reattach: string;
  observed: {
    /** What data.coder_parameter was asked for so far, by name; a later read replaces an earlier one. */
    parameters: ReadonlyMap<string, ObservedParameter>;
  };
  /** Ends every connection and removes the socket. */
  close(): Promise<void>;
}

/**
 * Serves one build. Start it before the build's first terraform command, close it behind the last.
 *
 * @param options.socketDir an existing directory only this user may enter (0700): the socket asks nobody who they are
 * @throws {ProviderError} ERR_PROVIDER_SOCKET when the directory is open to others or its path is too long
 */
export async function startProvider(
  context: ProviderContext,
  options: { socketDir: string },
): Promise<RunningProvider> {
  const socketPath = path.join(options.socketDir, `p${randomBytes(6).toString("hex")}.sock`);
  const pathBytes = Buffer.byteLength(socketPath);
  if (pathBytes > MAX_SOCKET_PATH_BYTES)
    throw new ProviderError(
      "ERR_PROVIDER_SOCKET",
      `the path of the provider's socket has ${pathBytes} bytes, and ${MAX_SOCKET_PATH_BYTES} is the most; ` +
        "set TMPDIR to a shorter path",
    );
  const directory = await lstat(options.socketDir);
  const isOurs = process.getuid === undefined || directory.uid === process.getuid();
  if (!directory.isDirectory() || (directory.mode & 0o077) !== 0 || !isOurs)
    throw new ProviderError(
      "ERR_PROVIDER_SOCKET",
      `${options.socketDir} must be a directory of this user with mode 0700`,
    );

  const service = createService(context);
  const server = await serveGrpc(socketPath, { prefix: "/tfplugin5.Provider/", ...service });
  return {
    reattach: JSON.stringify({
      [PROVIDER_ADDRESS]: {
        Protocol: "grpc",
        ProtocolVersion: 5,
        Pid: process.pid,
        // Without it Terraform kills the process it thinks it started: this one.
        Test: true,
        Addr: { Network: "unix", String: socketPath },
      },
    }),
    observed: { parameters: service.parameters },
    async close() {
      await server.close();
      await rm(socketPath, { force: true });
    },
  };
}
