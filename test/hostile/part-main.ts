// What runs in the process of a part: one role, whose functions the parent calls by name.
import { agent } from "./agent.ts";
import { badRelay } from "./bad-relay.ts";
import type { Reply, Request, Role } from "./part.ts";
import { reader } from "./reader.ts";
import { rogue } from "./rogue.ts";
import { server } from "./server.ts";

/** What goes in and comes out is between a role and the test that calls it. */
export type Functions = Record<string, (...args: never[]) => unknown>;

const roles: Record<Role, (options: never) => Promise<Functions>> = {
  server,
  agent,
  rogue,
  reader,
  badRelay,
};
const role = roles[process.argv[2] as Role];
let functions: Functions = {};

async function answer({ id, name, args }: Request): Promise<void> {
  const reply: Reply = { id };
  try {
    if (name === "start") functions = await role(args[0] as never);
    else reply.result = await functions[name](...(args as never[]));
  } catch (error) {
    reply.error = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  }
  process.send?.(reply);
}

process.on("message", (request: Request) => void answer(request));
process.on("disconnect", () => process.exit()); // the parent is gone
