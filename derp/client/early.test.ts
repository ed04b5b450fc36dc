import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { keyPair } from "../box.ts";
import { startRelay, type TestRelay } from "../testing.ts";
import { DerpClient } from "./client.ts";
import type { DialOptions } from "./dial.ts";
import { type EarlyDial, earlyDial } from "./early.ts";

describe("a connection begun early", () => {
  let relay: TestRelay;
  let door: Server;
  let port = 0;
  /** Connections that came through the door, oldest first. */
  let came: Socket[] = [];
  const earlies: EarlyDial[] = [];
  /** Without proxies, whatever runs this has. */
  const environment = {};
  const clients: DerpClient[] = [];

  beforeEach(async () => {
    relay = await startRelay();
    came = [];
    door = createServer((socket) => {
      came.push(socket);
      const onward = connect(relay.port, "127.0.0.1");
      socket.on("error", () => undefined).on("close", () => onward.destroy());
      onward.on("error", () => undefined).on("close", () => socket.destroy());
      socket.pipe(onward).pipe(socket);
    });
    door.listen(0, "127.0.0.1");
    await once(door, "listening");
    port = (door.address() as AddressInfo).port;
  });

  afterEach(async () => {
    for (const early of earlies.splice(0)) early.close();
    await Promise.all(clients.splice(0).map((client) => client.close()));
    door.close();
    for (const socket of came) socket.destroy();
    await once(door, "close");
    await relay.close();
  });

  const begin = (options: Parameters<typeof earlyDial>[1] = {}): EarlyDial => {
    const early = earlyDial(`http://127.0.0.1:${port}`, { environment, ...options });
    earlies.push(early);
    return early;
  };
  const client = (early: EarlyDial, more: Partial<DialOptions> = {}): DerpClient => {
    const url = `http://127.0.0.1:${port}/derp`;
    const made = new DerpClient({
      url,
      privateKey: keyPair().privateKey,
      environment,
      early,
      ...more,
    });
    clients.push(made);
    return made;
  };

  it("is the one the relay is then spoken to over, once", async () => {
    const early = begin();
    await once(door, "connection");
    const first = client(early);
    await first.connect();
    assert.ok((await first.ping()) > 0);
    assert.equal(came.length, 1);
    assert.equal(first.fastStarted, false); // its request was on the way before the relay's key could be known
    const second = client(early);
    await second.connect();
    assert.ok((await second.ping()) > 0);
    assert.equal(came.length, 2);
  });

  it("is left alone by whoever wants another place, or trusts by other rules", async () => {
    const early = begin();
    const { signal } = new AbortController();
    const url = new URL(`http://127.0.0.1:${port}/derp`);
    const here = { kind: "literal", address: "127.0.0.1" } as const;
    const elsewhere = { kind: "literal", address: "127.0.0.2" } as const;
    const others: Partial<DialOptions>[] = [
      { url: new URL(`https://127.0.0.1:${port}/derp`) },
      { url: new URL(`http://127.0.0.1:${port - 1}/derp`) },
      { certName: "relay.test" },
      { insecure: true },
      { ca: "PEM" },
      { address: "127.0.0.2" },
      { addresses: { host: "127.0.0.1", v4: elsewhere, v6: { kind: "off" } } },
      { environment: { HTTP_PROXY: "http://127.0.0.1:1" } },
    ];
    for (const other of others)
      assert.equal(
        await early.take({ url, signal, environment, ...other }),
        undefined,
        JSON.stringify(other),
      );
    const addresses = { host: "127.0.0.1", v4: here, v6: { kind: "off" } } as const;
    const taken = await early.take({ url, signal, environment, addresses });
    assert.ok(taken);
    taken.socket.destroy();
  });

  it("that was ended by the other side is not used; the relay is dialled as ever", async () => {
    const early = begin();
    const [ended] = (await once(door, "connection")) as [Socket];
    const gone = once(ended, "close");
    ended.resetAndDestroy();
    await gone;
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate); // the reset is read
    const late = client(early);
    await late.connect();
    assert.ok((await late.ping()) > 0);
    assert.equal(came.length, 2);
  });

  it("to where nobody listens fails in silence; who dials hears why", async () => {
    const closed = createServer().listen(0, "127.0.0.1");
    await once(closed, "listening");
    const nowhere = (closed.address() as AddressInfo).port;
    closed.close();
    await once(closed, "close");
    const early = earlyDial(`http://127.0.0.1:${nowhere}`, { environment });
    const url = new URL(`http://127.0.0.1:${nowhere}/derp`);
    await assert.rejects(client(early, { url }).connect(), { code: "ERR_RELAY_UNREACHABLE" });
  });

  it("ends when it is closed, or kept too long, and is not given out any more", async () => {
    for (const end of [(early: EarlyDial) => early.close(), undefined]) {
      const early = begin({ keptMs: end ? 60_000 : 20 });
      const [socket] = (await once(door, "connection")) as [Socket];
      const ended = once(socket, "close");
      end?.(early);
      await ended;
      const url = new URL(`http://127.0.0.1:${port}/derp`);
      const { signal } = new AbortController();
      assert.equal(await early.take({ url, signal, environment }), undefined);
    }
  });

  it("that is still on its way ends with the attempt that took it", async () => {
    const early = begin();
    const giveUp = new AbortController();
    const url = new URL(`http://127.0.0.1:${port}/derp`);
    const taking = early.take({ url, signal: giveUp.signal, environment });
    giveUp.abort(new Error("enough"));
    await assert.rejects(taking, /enough/);
    const open = (): Promise<number> =>
      new Promise((resolve) => door.getConnections((_error, count) => resolve(count)));
    while ((await open()) > 0) await new Promise(setImmediate);
  });
});
