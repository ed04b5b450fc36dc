import assert from "node:assert/strict";
import { MeshError } from "../wire/errors.ts";
import type { Coordinator, GrantedAgent } from "./coordinator.ts";
import { Dialer, type DialerHost } from "./dialer.ts";
import { SessionLink } from "./link.ts";
import { systemRuntime } from "./runtime.ts";

const AGENT = "a1";

class Refused extends MeshError {
  readonly code: `ERR_${string}`;
  constructor(code: `ERR_${string}`) {
    super(`${code} of the control plane`);
    this.code = code;
  }
}

/** A dialer whose time is a number, with a session to one agent. */
class Bench {
  now = 0;
  asked = 0;
  answer: () => GrantedAgent = () => ({ grant: new Uint8Array(), record: this.record() });
  readonly host: DialerHost;
  readonly dialer: Dialer;
  readonly coordinator: Coordinator;
  link!: SessionLink;

  constructor() {
    const nothing = () => undefined;
    this.host = {
      runtime: systemRuntime,
      now: () => this.now,
      start: ({ nodeKey }, grant, agentId, resumeWindowMs) => {
        const sessionId = new Uint8Array(16).fill(1);
        const host = {
          ...{ schedule: nothing, onStream: nothing, onReady: nothing, onLiveness: nothing },
          admit: () => ({ refuse: "notYours" as const }),
          onClosed: (link: SessionLink) => this.dialer.onClosed(link),
          runtime: systemRuntime,
          now: () => this.now,
        };
        const options = { role: "client" as const, now: this.now, sessionId, grant, agentId, resumeWindowMs };
        this.link = new SessionLink(host, nodeKey, options);
        return this.link;
      },
      reach: async () => undefined,
      moved: nothing,
      isDoubtful: () => false,
      debug: nothing,
    };
    const requestGrant = async () => {
      this.asked++;
      return this.answer();
    };
    this.coordinator = { requestGrant } as unknown as Coordinator;
    this.dialer = new Dialer(this.host, this.coordinator);
  }

  record(nodeKey = "key") {
    return { agentId: AGENT, nodeKey, homeRegion: 1, issuedAt: 0, expiresAt: 1e15 };
  }

  async connected(): Promise<this> {
    await this.dialer.connect(AGENT);
    return this;
  }

  /** Sweeps once a second. */
  async pass(ms: number): Promise<void> {
    for (const until = this.now + ms; this.now < until; ) {
      this.now += 1_000;
      this.dialer.sweep();
      await new Promise(setImmediate);
      this.link.handleEvents();
    }
  }
}

describe("an agent whose record is gone", () => {
  it("is asked for once a minute, and its session waits as long as the control plane knows it", async () => {
    const bench = await new Bench().connected();
    bench.dialer.onRecordGone(AGENT);
    bench.answer = () => ({ grant: new Uint8Array(), record: undefined });
    await bench.pass(3_600_000);
    assert.equal(bench.link.session.isClosed, false);
    const asked = bench.asked - 1;
    assert.ok(asked > 50 && asked < 70, `${asked} times in an hour`);
  });

  it("is given up when the control plane refuses it, with that reason", async () => {
    const bench = await new Bench().connected();
    bench.dialer.onRecordGone(AGENT);
    bench.answer = () => {
      throw new Refused("ERR_WORKSPACE_STOPPED");
    };
    await bench.pass(29_000);
    assert.equal(bench.link.session.isClosed, false);
    await bench.pass(62_000);
    assert.equal(bench.link.session.isClosed, true);
  });

  for (const code of ["ERR_COORDINATOR_UNREACHABLE", "ERR_BUSY"] as const)
    it(`is not given up for ${code}`, async () => {
      const bench = await new Bench().connected();
      bench.dialer.onRecordGone(AGENT);
      bench.answer = () => {
        throw new Refused(code);
      };
      await bench.pass(3_600_000);
      assert.equal(bench.link.session.isClosed, false);
    });

  it("that is back under another key ends the session: it is another process", async () => {
    const bench = await new Bench().connected();
    bench.dialer.onRecord(bench.record("key"));
    assert.equal(bench.link.session.isClosed, false);
    bench.dialer.onRecord(bench.record("another"));
    assert.equal(bench.link.session.isClosed, true);
  });
});

describe("a session that may be with a process that is gone", () => {
  it("is asked about before it is used again, and replaced when it is", async () => {
    const bench = await new Bench().connected();
    const [first, host] = [bench.link, bench.host];
    host.isDoubtful = (link) => link === first;
    bench.answer = () => ({ grant: new Uint8Array(), record: bench.record("another") });
    assert.notEqual(await bench.dialer.connect(AGENT), first);
    assert.equal(first.session.isClosed, true);
  });

  it("is used all the same when the coordinator can't be asked", async () => {
    const bench = await new Bench().connected();
    bench.host.isDoubtful = () => true;
    bench.answer = () => {
      throw new Refused("ERR_COORDINATOR_UNREACHABLE");
    };
    assert.equal(await bench.dialer.connect(AGENT), bench.link);
  });
});

describe("a session that ends while it is doubted", () => {
  it("is forgotten for good: whoever dialled meanwhile is told where the agent is, and so is who doubted", async () => {
    const bench = await new Bench().connected();
    const [first, { host, dialer }] = [bench.link, bench];
    host.isDoubtful = (link) => link === first;
    const answers: ((granted: GrantedAgent) => void)[] = [];
    const coordinator = { requestGrant: () => new Promise<GrantedAgent>((give) => answers.push(give)) };
    Object.assign(bench.coordinator, coordinator);
    const signal = AbortSignal.timeout(2_000);
    const doubting = dialer.connect(AGENT, { signal });
    first.session.close(0, "", 0);
    first.handleEvents();
    const fresh = dialer.connect(AGENT, { signal });
    await new Promise(setImmediate);
    assert.equal(answers.length, 2);
    answers[0]({ grant: new Uint8Array(), record: undefined });
    await new Promise(setImmediate);
    answers[1]({ grant: new Uint8Array(), record: undefined });
    await new Promise(setImmediate);
    dialer.onRecord(bench.record("another"));
    assert.equal((await fresh).peerKey, "another");
    assert.equal(await doubting, await fresh);
  });
});

describe("an agent that comes as it is asked for", () => {
  /** The record is told right behind the answer, before anybody who waits for that can have run. */
  const tellBehind = (
    bench: Bench,
    behind: ReturnType<Bench["record"]>,
    record?: ReturnType<Bench["record"]>,
  ) => {
    bench.answer = () => {
      queueMicrotask(() => bench.dialer.onRecord(behind));
      return { grant: new Uint8Array(), record };
    };
  };

  it("is dialled, though its record came before anybody waited for it", async () => {
    const bench = new Bench();
    tellBehind(bench, bench.record("key"));
    await bench.dialer.connect(AGENT, { signal: AbortSignal.timeout(1_000) });
    assert.equal(bench.link.peerKey, "key");
  });

  it("is dialled where the newest record says", async () => {
    const bench = new Bench();
    tellBehind(bench, { ...bench.record("new"), issuedAt: 2 }, { ...bench.record("old"), issuedAt: 1 });
    await bench.dialer.connect(AGENT, { signal: AbortSignal.timeout(1_000) });
    assert.equal(bench.link.peerKey, "new");
    tellBehind(bench, { ...bench.record("old"), issuedAt: 1 }, { ...bench.record("new"), issuedAt: 2 });
    bench.link.session.close(0, "", 0);
    bench.link.handleEvents();
    await bench.dialer.connect(AGENT, { signal: AbortSignal.timeout(1_000) });
    assert.equal(bench.link.peerKey, "new");
  });
});
