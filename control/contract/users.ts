import * as z from "zod";
import { Name, Paging, Timestamp, Username, Uuid } from "./common.ts";

export const LoginType = z.enum(["password", "github", "oidc", "token", "none"]);
export type LoginType = z.infer<typeof LoginType>;
export const UserStatus = z.enum(["active", "dormant", "suspended"]);
export type UserStatus = z.infer<typeof UserStatus>;
export const SITE_ROLES = ["owner", "user-admin", "template-admin", "auditor", "member"] as const;
export const SiteRole = z.enum(SITE_ROLES);
export type SiteRole = z.infer<typeof SiteRole>;

/** Checked for strength by the server; 64 is Coder's limit. */
const Password = z.string().min(1).max(64);
const Email = z.email().max(254);

export const MinimalUser = z.object({
  id: Uuid,
  username: z.string(),
  name: z.string().optional(),
  avatar_url: z.string().optional(),
});
export type MinimalUser = z.infer<typeof MinimalUser>;

export const RoleRef = z.object({
  name: z.string(),
  display_name: z.string(),
  organization_id: z.string().optional(),
});
export type RoleRef = z.infer<typeof RoleRef>;

export const User = z.object({
  id: Uuid,
  username: z.string(),
  name: z.string(),
  email: z.string(),
  avatar_url: z.string(),
  status: UserStatus,
  login_type: LoginType,
  organization_ids: z.array(Uuid),
  /** Without the implied role `member`. */
  roles: z.array(RoleRef),
  created_at: Timestamp,
  updated_at: Timestamp,
  last_seen_at: Timestamp,
  is_service_account: z.boolean().optional(),
  theme_preference: z.string().optional(),
});
export type User = z.infer<typeof User>;

/** POST users/first: 201 CreateFirstUserResponse | 400 | 409 when there is a user. GET: 200 or 404 MessageBody */
export const CreateFirstUserRequest = z.object({
  email: Email,
  username: Username,
  name: z.string().max(128).default(""),
  password: Password,
  trial: z.boolean().optional(),
});
export type CreateFirstUserRequest = z.input<typeof CreateFirstUserRequest>;
export const CreateFirstUserResponse = z.object({ user_id: Uuid, organization_id: Uuid });
export type CreateFirstUserResponse = z.infer<typeof CreateFirstUserResponse>;

/** POST users/login: 201 LoginResponse and the session cookie | 401, the same for an unknown user | 429 */
export const LoginRequest = z.object({
  email: z.string().min(1).max(254),
  password: z.string().min(1).max(1024),
});
export type LoginRequest = z.infer<typeof LoginRequest>;
export const LoginResponse = z.object({ session_token: z.string() });
export type LoginResponse = z.infer<typeof LoginResponse>;

export const AuthMethods = z.object({
  terms_of_service_url: z.string().optional(),
  password: z.object({ enabled: z.boolean() }),
  github: z.object({ enabled: z.boolean(), default_provider_configured: z.boolean() }),
  oidc: z.object({ enabled: z.boolean(), signInText: z.string(), iconUrl: z.string() }),
});
export type AuthMethods = z.infer<typeof AuthMethods>;

/** POST users/validate-password: 200 ValidatePasswordResponse */
export const ValidatePasswordRequest = z.object({ password: z.string().max(1024) });
export const ValidatePasswordResponse = z.object({ valid: z.boolean(), details: z.string() });
export type ValidatePasswordResponse = z.infer<typeof ValidatePasswordResponse>;

/** POST users: 201 User | 409 name or email taken */
export const CreateUserRequest = z
  .object({
    email: Email,
    username: Username,
    name: z.string().max(128).default(""),
    password: z.string().max(64).default(""),
    login_type: z.enum(["password", "none"]).default("password"),
    user_status: UserStatus.optional(),
    organization_ids: z.array(Uuid).max(16).optional(),
    roles: z.array(SiteRole).max(8).optional(),
  })
  .refine((user) => user.login_type !== "password" || user.password !== "", {
    error: "is required for login type password",
    path: ["password"],
  });
export type CreateUserRequest = z.input<typeof CreateUserRequest>;

export const UsersQuery = Paging.extend({ q: z.string().max(1024).optional() });
export const UsersResponse = z.object({ users: z.array(User), count: z.number().int() });
export type UsersResponse = z.infer<typeof UsersResponse>;

/** PUT users/{u}/profile: 200 User */
export const UpdateUserProfileRequest = z.object({
  username: Username,
  name: z.string().max(128).default(""),
});
/** PUT users/{u}/password: 204. `old_password` is wanted from everyone who changes their own. */
export const UpdateUserPasswordRequest = z.object({
  old_password: z.string().max(1024).default(""),
  password: Password,
});
/** PUT users/{u}/roles: 200 User */
export const UpdateRolesRequest = z.object({ roles: z.array(SiteRole).max(8) });
export const UserRoles = z.object({
  roles: z.array(z.string()),
  organization_roles: z.record(z.string(), z.array(z.string())),
});

export const ApiKeyScope = z.enum(["all", "application_connect"]);
/** POST users/{u}/keys/tokens: 201 GenerateApiKeyResponse | 409 name taken. `lifetime` in nanoseconds. */
export const CreateTokenRequest = z.object({
  lifetime: z.number().int().min(0).optional(),
  scope: ApiKeyScope.optional(),
  token_name: z
    .string()
    .max(64)
    .regex(/^[a-zA-Z0-9]+(?:[_.-][a-zA-Z0-9]+)*$/)
    .optional(),
});
export type CreateTokenRequest = z.infer<typeof CreateTokenRequest>;
export const GenerateApiKeyResponse = z.object({ key: z.string() });
export type GenerateApiKeyResponse = z.infer<typeof GenerateApiKeyResponse>;

export const ApiKey = z.object({
  id: z.string(),
  user_id: Uuid,
  last_used: Timestamp,
  expires_at: Timestamp,
  created_at: Timestamp,
  updated_at: Timestamp,
  login_type: LoginType,
  scope: ApiKeyScope,
  scopes: z.array(z.string()),
  token_name: z.string(),
  lifetime_seconds: z.number().int(),
});
export type ApiKey = z.infer<typeof ApiKey>;
export const ApiKeyWithOwner = ApiKey.extend({ username: z.string() });
export type ApiKeyWithOwner = z.infer<typeof ApiKeyWithOwner>;
/** `max_token_lifetime` in nanoseconds, as Coder sends it. */
export const TokenConfig = z.object({ max_token_lifetime: z.number().int() });

export const Organization = z.object({
  id: Uuid,
  name: Name,
  display_name: z.string(),
  description: z.string(),
  icon: z.string(),
  created_at: Timestamp,
  updated_at: Timestamp,
  is_default: z.boolean(),
});
export type Organization = z.infer<typeof Organization>;

/** POST authcheck: 200, one boolean per name */
export const AuthCheckRequest = z.object({
  checks: z
    .record(
      z.string().max(128),
      z.object({
        object: z.object({
          resource_type: z.string().max(64),
          owner_id: z.string().max(64).optional(),
          organization_id: z.string().max(64).optional(),
          resource_id: z.string().max(64).optional(),
          any_org: z.boolean().optional(),
        }),
        action: z.string().max(64),
      }),
    )
    .refine((checks) => Object.keys(checks).length <= 100, { error: "holds at most 100 checks" }),
});
export const AuthCheckResponse = z.record(z.string(), z.boolean());
