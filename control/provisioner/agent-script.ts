// What a workspace runs to become one: `coder_agent.init_script`. The provider replaces ${ACCESS_URL} (with a
// trailing slash) and ${AUTH_TYPE}; the token comes in CODER_AGENT_TOKEN and never stands in the text. Pure.

export const AGENT_PLATFORMS = [
  { os: "linux", arch: "amd64" },
  { os: "linux", arch: "arm64" },
  { os: "linux", arch: "armv7" },
  { os: "darwin", arch: "amd64" },
  { os: "darwin", arch: "arm64" },
  { os: "windows", arch: "amd64" },
  { os: "windows", arch: "arm64" },
] as const;

export interface AgentScriptOptions {
  os: "linux" | "darwin" | "windows";
  arch: "amd64" | "arm64" | "armv7";
  /**
   * This installation's own command, such as [node, dist/coder.js]: used where its files exist, that is in
   * workspaces on this machine, which then need no download. Elsewhere the script downloads as usual.
   */
  localCommand?: readonly string[];
}

/** The text of an init_script. It ends by becoming `coder agent`, so its process id is the agent's. */
export function agentScript({ os, arch, localCommand }: AgentScriptOptions): string {
  return os === "windows" ? windowsScript(arch) : unixScript(os, arch, localCommand ?? []);
}

/** @returns the script of each platform by "<os>_<arch>", for the provider's context */
export function agentScripts(localCommand?: readonly string[]): Map<string, string> {
  const host = { os: HOST_OS[process.platform], arch: HOST_ARCH[process.arch] };
  return new Map(
    AGENT_PLATFORMS.map(({ os, arch }) => [
      `${os}_${arch}`,
      agentScript({
        os,
        arch,
        ...(localCommand && os === host.os && arch === host.arch && { localCommand }),
      }),
    ]),
  );
}

const HOST_OS: Record<string, string> = { linux: "linux", darwin: "darwin", win32: "windows" };
const HOST_ARCH: Record<string, string> = { x64: "amd64", arm64: "arm64", arm: "armv7" };

function unixScript(os: string, arch: string, localCommand: readonly string[]): string {
  const files = localCommand.filter((part) => part.startsWith("/"));
  const local =
    localCommand.length === 0
      ? ""
      : `if ${[`[ -x ${quote(localCommand[0]!)} ]`, ...files.slice(1).map((file) => `[ -r ${quote(file)} ]`)].join(" && ")}; then
  exec ${localCommand.map(quote).join(" ")} agent
fi
`;
  return `#!/bin/sh
set -eu
export CODER_AGENT_URL="\${ACCESS_URL}"
export CODER_AGENT_AUTH="\${AUTH_TYPE}"
${local}BINARY_URL="\${ACCESS_URL}bin/coder-${os}-${arch}"
BINARY_DIR=$(mktemp -d "\${TMPDIR:-/tmp}/coder.XXXXXX")
BINARY="$BINARY_DIR/coder"
download() {
  if command -v curl >/dev/null 2>&1; then
    curl -fsSL --compressed --connect-timeout 30 --speed-limit 1024 --speed-time 60 -o "$BINARY" "$BINARY_URL"
  elif command -v wget >/dev/null 2>&1; then
    wget -q -T 30 -O "$BINARY" "$BINARY_URL"
  elif command -v busybox >/dev/null 2>&1; then
    busybox wget -q -T 30 -O "$BINARY" "$BINARY_URL"
  else
    echo "error: no download tool found; install curl or wget" >&2
    exit 127
  fi
}
WAIT=1
until download; do
  echo "error: $BINARY_URL could not be downloaded, trying again in $WAIT s" >&2
  sleep "$WAIT"
  if [ "$WAIT" -lt 30 ]; then WAIT=$((WAIT * 2)); fi
done
chmod 700 "$BINARY"
exec "$BINARY" agent
`;
}

function windowsScript(arch: string): string {
  return `$ErrorActionPreference = "Stop"
$ProgressPreference = "SilentlyContinue"
$env:CODER_AGENT_URL = "\${ACCESS_URL}"
$env:CODER_AGENT_AUTH = "\${AUTH_TYPE}"
$binary = Join-Path ([IO.Path]::GetTempPath()) ("coder-" + [guid]::NewGuid() + ".exe")
[Net.ServicePointManager]::SecurityProtocol = [Net.SecurityProtocolType]::Tls12
$wait = 1
while ($true) {
  try {
    Invoke-WebRequest -UseBasicParsing -Uri "\${ACCESS_URL}bin/coder-windows-${arch}.exe" -OutFile $binary
    break
  } catch {
    Write-Output "error: the agent could not be downloaded, trying again in $wait s: $_"
    Start-Sleep -Seconds $wait
    $wait = [Math]::Min($wait * 2, 30)
  }
}
& $binary agent
exit $LASTEXITCODE
`;
}

/** One word of a POSIX shell. */
function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
