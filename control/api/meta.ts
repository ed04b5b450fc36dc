import * as z from "zod";
import { ACTIONS, OBJECT_TYPES } from "../auth/authorize.ts";
import { MessageBody } from "../contract/common.ts";
import {
  Appearance,
  BuildInfo,
  DeploymentConfig,
  Entitlements,
  Experiments,
  SshConfig,
  UpdateCheck,
} from "../contract/meta.ts";
import { AuthCheckRequest, AuthCheckResponse } from "../contract/users.ts";
import { may, must } from "./access.ts";
import type { ApiDeps } from "./deps.ts";
import { publicRoute, type Route, userRoute } from "./route.ts";

/** `ssh workspace.coder` reaches it, once `coder config-ssh` has run. */
export const HOSTNAME_SUFFIX = "coder";

/** What clients ask before anything else, and what they only want to see there. */
export function metaRoutes(deps: ApiDeps): Route[] {
  return [
    publicRoute({
      method: "get",
      path: "/",
      out: MessageBody,
      handle: async () => ({ message: "👋" }),
    }),
    publicRoute({
      method: "get",
      path: "/buildinfo",
      out: BuildInfo,
      handle: async () => ({
        version: `v${deps.version}`,
        external_url: deps.accessUrl(),
        dashboard_url: deps.accessUrl(),
        deployment_id: deps.deploymentId,
        agent_api_version: "1.0",
        provisioner_api_version: "1.0",
        upgrade_message: "",
        telemetry: false,
        workspace_proxy: false,
      }),
    }),
    publicRoute({
      method: "get",
      path: "/updatecheck",
      out: UpdateCheck,
      handle: async () => ({ current: true, version: `v${deps.version}`, url: "" }),
    }),
    publicRoute({
      method: "get",
      path: "/appearance",
      out: Appearance,
      handle: async () => ({
        application_name: "",
        logo_url: "",
        docs_url: "",
        service_banner: { enabled: false },
        announcement_banners: [],
        support_links: [],
      }),
    }),
    userRoute({
      method: "get",
      path: "/entitlements",
      out: Entitlements,
      handle: async ({ now }) => ({
        features: {},
        warnings: [],
        errors: [],
        has_license: false,
        trial: false,
        require_telemetry: false,
        refreshed_at: now.toISOString(),
      }),
    }),
    userRoute({ method: "get", path: "/experiments", out: Experiments, handle: async () => [] }),
    userRoute({
      method: "get",
      path: "/experiments/available",
      out: z.object({ safe: Experiments }),
      handle: async () => ({ safe: [] }),
    }),
    userRoute({
      method: "get",
      path: "/deployment/ssh",
      out: SshConfig,
      handle: async () => ({
        hostname_prefix: "coder.",
        hostname_suffix: HOSTNAME_SUFFIX,
        ssh_config_options: {},
      }),
    }),
    userRoute({
      method: "get",
      path: "/deployment/config",
      out: DeploymentConfig,
      handle: async ({ user }) => {
        must(user, "read", { type: "deployment_config" });
        const { limits, version } = deps;
        return { config: { access_url: deps.accessUrl(), version, limits }, options: [] };
      },
    }),
    userRoute({
      method: "post",
      path: "/authcheck",
      body: AuthCheckRequest,
      out: AuthCheckResponse,
      handle: async ({ user, body }) =>
        Object.fromEntries(
          Object.entries(body.checks).map(([name, { action, object }]) => {
            const type = OBJECT_TYPES.find((known) => known === object.resource_type);
            const verb = ACTIONS.find((known) => known === action);
            // As Coder does: "me" is the caller. What we don't know isn't allowed.
            const ownerId = object.owner_id === "me" ? user.userId : object.owner_id;
            const { organization_id: organizationId, resource_id: id } = object;
            return [name, !!type && !!verb && may(user, verb, { type, ownerId, organizationId, id })];
          }),
        ),
    }),
  ];
}
