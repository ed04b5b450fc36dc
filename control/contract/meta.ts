import * as z from "zod";

/** GET buildinfo: 200, no login. `version` is strict semver with a leading v, as clients parse it. */
export const BuildInfo = z.object({
  version: z.string(),
  external_url: z.string(),
  dashboard_url: z.string(),
  deployment_id: z.string(),
  agent_api_version: z.string(),
  provisioner_api_version: z.string(),
  upgrade_message: z.string(),
  telemetry: z.boolean(),
  workspace_proxy: z.boolean(),
});
export type BuildInfo = z.infer<typeof BuildInfo>;

const Feature = z.object({
  entitlement: z.enum(["entitled", "grace_period", "not_entitled"]),
  enabled: z.boolean(),
});
/** GET entitlements: everything is open here, so nothing is held back and nothing warns. */
export const Entitlements = z.object({
  features: z.record(z.string(), Feature),
  warnings: z.array(z.string()),
  errors: z.array(z.string()),
  has_license: z.boolean(),
  trial: z.boolean(),
  require_telemetry: z.boolean(),
  refreshed_at: z.string(),
});
export type Entitlements = z.infer<typeof Entitlements>;

const Banner = z.object({
  enabled: z.boolean(),
  message: z.string().optional(),
  background_color: z.string().optional(),
});
export const Appearance = z.object({
  application_name: z.string(),
  logo_url: z.string(),
  docs_url: z.string(),
  service_banner: Banner,
  announcement_banners: z.array(Banner),
  support_links: z.array(z.object({ name: z.string(), target: z.string(), icon: z.string() })),
});
export type Appearance = z.infer<typeof Appearance>;

export const Experiments = z.array(z.string());
export const UpdateCheck = z.object({ current: z.boolean(), version: z.string(), url: z.string() });
/** GET deployment/ssh: what `config-ssh` writes. */
export const SshConfig = z.object({
  hostname_prefix: z.string(),
  hostname_suffix: z.string(),
  ssh_config_options: z.record(z.string(), z.string()),
});
/** GET deployment/config: owners only. The values in force; secrets left out. */
export const DeploymentConfig = z.object({
  config: z.record(z.string(), z.unknown()),
  options: z.array(z.object({ name: z.string(), env: z.string(), value: z.unknown() })),
});
