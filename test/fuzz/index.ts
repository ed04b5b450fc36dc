// Every target, by name.
import type { Target } from "./engine.ts";
import { apiTargets } from "./targets/api.ts";
import { buildTargets } from "./targets/builds.ts";
import { clientTargets } from "./targets/client.ts";
import { coordinatorTargets } from "./targets/coordinator.ts";
import { derpTargets } from "./targets/derp.ts";
import { serviceTargets } from "./targets/services.ts";
import { sessionTargets } from "./targets/session.ts";
import { stunTargets } from "./targets/stun.ts";
import { wireGuardTargets } from "./targets/wireguard.ts";

export const targets: readonly Target[] = [
  ...derpTargets,
  ...stunTargets,
  ...wireGuardTargets,
  ...sessionTargets,
  ...coordinatorTargets,
  ...serviceTargets,
  ...apiTargets,
  ...buildTargets,
  ...clientTargets,
];
