import assert from "node:assert/strict";
import { type Crowded, GIVES_WAY_AFTER_MS, hasRoom, MAX_LINKS_PER_USER, makeRoom } from "./crowd.ts";

describe("a user's share of an agent's sessions", () => {
  const sessionOf = (userId: string, lastHeardAt = 0) => {
    const link = {
      grant: { userId },
      lastHeardAt,
      session: { isClosed: false },
      close(name: string) {
        assert.equal(name, "resourceLimit");
        link.session.isClosed = true;
      },
    };
    return link satisfies Crowded;
  };
  const crowd = (userId: string, count = MAX_LINKS_PER_USER) =>
    Array.from({ length: count }, (_, i) => sessionOf(userId, i));

  it("ends at 512, and is nobody else's", () => {
    const all = crowd("alice");
    assert.equal(makeRoom("alice", all.slice(1), 0), true);
    assert.equal(makeRoom("alice", all, 0), false);
    assert.equal(makeRoom("bob", all, 0), true);
    assert.equal(all.filter(({ session }) => session.isClosed).length, 0);
  });

  it("counts no session that has ended", () => {
    const all = crowd("alice");
    all[9].session.isClosed = true;
    assert.equal(makeRoom("alice", all, 0), true);
  });

  it("a session that has been silent for a minute gives way, the most silent one and no more", () => {
    const all = [...crowd("bob", 5), ...crowd("alice").reverse()];
    assert.equal(makeRoom("alice", all, GIVES_WAY_AFTER_MS - 1), false);
    assert.equal(makeRoom("alice", all, GIVES_WAY_AFTER_MS), true);
    assert.deepEqual(
      all
        .filter(({ session }) => session.isClosed)
        .map(({ grant, lastHeardAt }) => [grant.userId, lastHeardAt]),
      [["alice", 0]],
    );
  });
});

describe("the sessions of a node", () => {
  const link = (isClosed = false) => ({ session: { isClosed } });
  const houseOf = (links: ReturnType<typeof link>[]) => ({
    get linkCount() {
      return links.length;
    },
    links: () => [...links],
    forget: (ended: ReturnType<typeof link>) => void links.splice(links.indexOf(ended), 1),
  });

  it("are 4,096, four of one peer", () => {
    const house = houseOf(Array.from({ length: 4_095 }, () => link()));
    assert.equal(hasRoom(house, 3, house.forget), true);
    assert.equal(hasRoom(house, 4, house.forget), false);
    const full = houseOf(Array.from({ length: 4_096 }, () => link()));
    assert.equal(hasRoom(full, 0, full.forget), false);
  });

  it("those that have ended make room in a full house, and stay for their goodbye otherwise", () => {
    const full = houseOf(Array.from({ length: 4_096 }, (_, i) => link(i % 2 === 0)));
    assert.equal(hasRoom(full, 0, full.forget), true);
    assert.equal(full.linkCount, 2_048);
    const half = houseOf([link(), link(true)]);
    assert.equal(hasRoom(half, 0, half.forget), true);
    assert.equal(half.linkCount, 2);
  });
});
