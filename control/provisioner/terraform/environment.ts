// What Terraform and everything it starts (providers, local-exec scripts) get to see of the daemon's environment.
// A list of what is let in, not of what is kept out: the server's environment holds database passwords and keys.
import { access, writeFile } from "node:fs/promises";
import path from "node:path";
import { TerraformError } from "./errors.ts";

/** Exact names; compared without case on Windows. */
const ALLOWED = new Set([
  ...["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TMP", "TEMP", "LANG", "LANGUAGE", "TZ"],
  ...["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"],
  ...["SYSTEMROOT", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "WINDIR", "APPDATA", "LOCALAPPDATA", "USERPROFILE"],
  ...["PROGRAMDATA", "PROGRAMFILES"],
  ...[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
  ],
  ...["SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"],
  ...["SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "KUBECONFIG"],
]);

/** Cloud credentials, and Terraform's own knobs that can't break our contract with it. */
const ALLOWED_PREFIXES = [
  ...[
    "AWS_",
    "AZURE_",
    "ARM_",
    "GOOGLE_",
    "GCLOUD_",
    "GCP_",
    "CLOUDSDK_",
    "GCE_",
    "ALICLOUD_",
    "OCI_",
    "IBM_",
  ],
  ...["IC_", "DIGITALOCEAN_", "HCLOUD_", "LINODE_", "SCW_", "OVH_", "VULTR_", "EXOSCALE_", "OS_", "NUTANIX_"],
  ...[
    "VSPHERE_",
    "PROXMOX_",
    "PM_",
    "LIBVIRT_",
    "INCUS_",
    "LXD_",
    "DOCKER_",
    "PODMAN_",
    "KUBE_",
    "KUBERNETES_",
  ],
  ...["VAULT_", "CONSUL_", "NOMAD_", "CLOUDFLARE_", "ENVBUILDER_", "LC_", "TF_VAR_", "TF_TOKEN_"],
];

/**
 * Go's collector costs a fifth to a third of a short command; the limit brings it back before memory matters.
 * Both reach third-party providers too.
 */
const GO_SETTINGS = { GOGC: "400", GOMEMLIMIT: "512MiB" };

/**
 * @param extraNames further names to let through; a trailing `*` makes a prefix (`MYCLOUD_*`)
 * @returns a fresh environment for one Terraform command
 */
export function terraformEnvironment(
  source: NodeJS.ProcessEnv,
  ours: Record<string, string>,
  extraNames: readonly string[] = [],
): Record<string, string> {
  const names = new Set([...ALLOWED, ...extraNames.filter((name) => !name.endsWith("*"))]);
  const prefixes = [
    ...ALLOWED_PREFIXES,
    ...extraNames.filter((name) => name.length > 1 && name.endsWith("*")).map((name) => name.slice(0, -1)),
  ];
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(source)) {
    if (value === undefined) continue;
    const comparable = process.platform === "win32" ? name.toUpperCase() : name;
    if (names.has(comparable) || prefixes.some((prefix) => comparable.startsWith(prefix))) env[name] = value;
  }
  return {
    ...env,
    ...GO_SETTINGS,
    TF_IN_AUTOMATION: "1",
    TF_INPUT: "0",
    CHECKPOINT_DISABLE: "1",
    ...ours,
  };
}

/**
 * Which CLI configuration Terraform reads; always named, since a default one that isn't there makes every command
 * print a warning. The operator's comes first: CODER_TERRAFORM_CLI_CONFIG, TF_CLI_CONFIG_FILE, the one in HOME;
 * else ours is written to `ownPath`.
 *
 * @param mirrorDir a filesystem mirror of providers for ours, beside the registry
 * @throws {TerraformError} ERR_TERRAFORM_CLI_CONFIG
 */
export async function chooseCliConfig(
  source: NodeJS.ProcessEnv,
  ownPath: string,
  mirrorDir?: string,
): Promise<{ path: string; own: boolean }> {
  const named = source["CODER_TERRAFORM_CLI_CONFIG"];
  if (named) {
    if (await exists(named)) return { path: named, own: false };
    throw new TerraformError(
      "ERR_TERRAFORM_CLI_CONFIG",
      `CODER_TERRAFORM_CLI_CONFIG names ${named}, which can't be read; correct the path or unset it`,
    );
  }
  const home = source["HOME"];
  const appData = source["APPDATA"];
  const users = [
    source["TF_CLI_CONFIG_FILE"],
    process.platform === "win32"
      ? appData && path.join(appData, "terraform.rc")
      : home && path.join(home, ".terraformrc"),
  ];
  for (const candidate of users)
    if (candidate && (await exists(candidate))) return { path: candidate, own: false };
  const mirror = mirrorDir
    ? `provider_installation {\n  filesystem_mirror {\n    path = ${hclString(mirrorDir)}\n  }\n  direct {}\n}\n`
    : "";
  await writeFile(ownPath, `disable_checkpoint = true\n${mirror}`, { mode: 0o600 });
  return { path: ownPath, own: true };
}

function hclString(text: string): string {
  return JSON.stringify(text).replace(/([$%])\{/g, "$1$1{");
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
