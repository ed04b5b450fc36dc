import assert from "node:assert/strict";
import { type MeshLab, meshLab } from "../mesh-lab.ts";
import { ForgetfulStore, leftOver, offer, openAndClose, settled } from "./session-load.ts";

const SETTLE_MS = 15_000;

/** What keeps this process busy, by kind; what tests themselves use comes and goes and is left out. */
function sockets(): number {
  return process.getActiveResourcesInfo().filter((kind) => /TCP|UDP|Pipe/.test(kind)).length;
}

describe("sessions that come and go", () => {
  let lab: MeshLab;
  afterEach(() => lab?.close());

  it("leave nothing behind, however they were used and ended", async function () {
    this.timeout(60_000);
    lab = await meshLab({ makeStore: () => new ForgetfulStore() });
    const { node, agentId } = await lab.agent();
    offer(node);
    const before = sockets();
    const seed = Date.now() % 1_000_000;
    const result = await openAndClose(lab.url, agentId, {
      sessions: 300,
      parallel: 10,
      seed,
      killedShare: 0,
    });
    assert.deepEqual([result.sessions, result.failures], [300, {}], `seed ${seed}`);
    await settled(() => leftOver(node), SETTLE_MS);
    const gauges = async () =>
      Object.fromEntries((await lab.relay.metrics()).map(({ name, values }) => [name, values[0]?.value]));
    // The agent's own.
    assert.equal((await gauges())["gauge_current_connections"], 1);
    await settled(
      () => (sockets() > before ? `${sockets()} sockets, ${before} before` : undefined),
      SETTLE_MS,
    );
  });
});
