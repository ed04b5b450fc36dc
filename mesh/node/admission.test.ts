import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { toBase64, utf8 } from "../wire/bytes.ts";
import { encodeStatement, type Grant } from "../wire/signed.ts";
import {
  Admission,
  isUnrenewed,
  MAX_REVOKED,
  MAX_UNRENEWED_MS,
  renewedAfterSilence,
  WAKE_GRACE_MS,
} from "./admission.ts";

const AGENT = randomUUID();
const NODE_KEY = new Uint8Array(32).fill(9);
const SIGNATURE = new Uint8Array(64);
const signer = { id: new Uint8Array(8), sign: () => SIGNATURE };
const keys = [{ id: "0".repeat(16), publicKey: toBase64(new Uint8Array(32)) }];

function makeGrant(overrides: Partial<Grant> = {}): Grant {
  return {
    id: randomUUID(),
    nodeKey: toBase64(NODE_KEY),
    userId: randomUUID(),
    username: "alice",
    agentId: AGENT,
    permissions: ["*"],
    issuedAt: 0,
    expiresAt: 1_000,
    ...overrides,
  };
}
const sign = (grant: Grant) => encodeStatement("grant", grant, signer);

describe("admission to an agent", () => {
  const nobody = { grant: undefined, renewedAt: 0 };
  let coordinator: { signingKeys: typeof keys; agentId: string | undefined; nowMs(): number };
  let admission: Admission;
  let nowMs: number;
  beforeEach(() => {
    nowMs = 500;
    coordinator = { signingKeys: keys, agentId: AGENT, nowMs: () => nowMs };
    admission = new Admission(coordinator, () => true);
  });
  const refusal = (statement: Uint8Array, held: Parameters<typeof isUnrenewed>[0] = nobody, now = 0) => {
    const verdict = admission.judge(statement, NODE_KEY, held, now);
    return "refuse" in verdict ? verdict.refuse : verdict.id;
  };

  it("lets in whom the grant names, at the agent it names, while it is valid", () => {
    const grant = makeGrant();
    assert.equal(refusal(sign(grant)), grant.id);
    assert.equal(refusal(sign(makeGrant({ agentId: randomUUID() }))), "notYours");
    assert.equal(refusal(sign(makeGrant({ nodeKey: toBase64(new Uint8Array(32)) }))), "notYours");
    assert.equal(refusal(utf8("x".repeat(200))), "protocolViolation");
    nowMs = 1_000;
    assert.equal(refusal(sign(grant)), "grantExpired");
  });

  it("a session let in goes on with an expired grant, but not for ever", () => {
    const held = { grant: makeGrant(), renewedAt: 0 };
    nowMs = 5_000;
    assert.equal(refusal(sign(held.grant), held, MAX_UNRENEWED_MS - 1), held.grant.id);
    assert.equal(isUnrenewed(held, MAX_UNRENEWED_MS - 1), false);
    assert.equal(refusal(sign(held.grant), held, MAX_UNRENEWED_MS), "grantExpired");
    assert.equal(isUnrenewed(held, MAX_UNRENEWED_MS), true);
  });

  it("a session that was silent for half a day has a moment to bring a new grant, unless it was revoked", () => {
    const grant = makeGrant();
    const wokeAt = 2 * MAX_UNRENEWED_MS;
    const held = { grant, renewedAt: renewedAfterSilence(0, wokeAt) };
    nowMs = 5_000;
    assert.equal(refusal(sign(grant), held, wokeAt), grant.id);
    assert.equal(isUnrenewed(held, wokeAt + WAKE_GRACE_MS - 1), false);
    assert.equal(isUnrenewed(held, wokeAt + WAKE_GRACE_MS), true);
    assert.equal(renewedAfterSilence(wokeAt - 1_000, wokeAt), wokeAt - 1_000);
  });

  it("a session let in before a later build made another agent of this process goes on", () => {
    const held = { grant: makeGrant(), renewedAt: 0 };
    coordinator.agentId = randomUUID();
    assert.equal(refusal(sign(held.grant), held), held.grant.id);
    assert.equal(refusal(sign(held.grant)), "notYours");
  });

  it("remembers what was revoked, up to a bound", () => {
    const [kept, dropped] = [makeGrant(), makeGrant()];
    admission.revoke([dropped.id, kept.id]);
    assert.equal(refusal(sign(kept)), "revoked");
    assert.equal(refusal(sign(dropped), { grant: dropped, renewedAt: 0 }), "revoked");
    admission.revoke(Array.from({ length: MAX_REVOKED - 1 }, randomUUID));
    assert.equal(refusal(sign(kept)), "revoked");
    assert.equal(refusal(sign(dropped)), dropped.id);
  });
});
