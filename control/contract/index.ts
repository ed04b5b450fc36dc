// The whole API in one import. Schema and type of a thing share its name.
export * from "./agent.ts";
export * from "./common.ts";
export * from "./jobs.ts";
export * from "./mesh.ts";
export * from "./meta.ts";
export * from "./templates.ts";
export * from "./users.ts";
export * from "./workspaces.ts";
