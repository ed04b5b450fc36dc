// Who knows an agent's node key and has no permission can send it first messages of WireGuard, as many as the relay
// carries. What the agent answers, and so what it computes, is bounded; who is welcome gets in meanwhile.
import assert from "node:assert/strict";
import { needsProc } from "../skip.ts";
import type { Part } from "./part.ts";
import { costOf, World } from "./world.ts";

/** `maxHandshakesPerSecond`: answered without a cookie in the second in which a flood begins. */
const FREE = 100;
type Came = { responses: number; cookies: number };

describe("strangers at an agent's door", function () {
  this.timeout(60_000);
  let world: World;
  let rogue: Part;

  before(async function () {
    needsProc(this);
    world = await World.begin();
    rogue = await world.part("rogue");
  });
  after(() => world?.end());

  const sent = () => world.agent.call<Record<number, number>>("sent");

  it("one initiation, sent again and again, is answered once", async () => {
    const before = await sent();
    await rogue.call("flood", { count: 90, keys: 1, isReplay: true });
    const after = await sent();
    assert.equal(after[2] - before[2], 1);
    assert.equal(after[3] - before[3], 0);
  });

  it("what is no message, and what has a wrong mac1, is answered with nothing", async () => {
    const before = await sent();
    await rogue.call("noise", 3_000);
    await world.echo();
    const after = await sent();
    assert.equal(after[2] - before[2], 1, "the honest client's");
    assert.equal(after[3] - before[3], 0);
  });

  for (const keys of [1, 32])
    it(`a flood of initiations from ${keys} relay connections is answered with cookies, and an honest client gets in`, async () => {
      const count = 1_500;
      const before = await sent();
      const { cpuMs } = await costOf(world.agent, async () => {
        const flood = rogue.call<Came>("flood", { count, keys });
        await world.echo();
        await flood;
      });
      const after = await sent();
      const [responses, cookies] = [after[2] - before[2], after[3] - before[3]];
      // The honest client's own handshake is one of them. What came faster than the agent reads, the relay has dropped.
      assert.ok(responses <= FREE + 4, `${responses} responses`);
      assert.ok(cookies >= FREE, `${cookies} cookie replies`);
      assert.ok(responses + cookies <= count + 4, "one answer each at most");
      console.log(`        ${((cpuMs * 1_000) / count).toFixed(0)} us of the agent's CPU a message`);
    });

  it("a crowd that knocks with a grant that is none is refused, holds no session, and keeps nobody out", async () => {
    const { code } = await rogue.call<{ code: number }>("knock", 100);
    assert.notEqual(code, 0);
    await world.echo();
  });
});
