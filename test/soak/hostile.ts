// The attacks of test/hostile, at length: what each costs its victim, and that an honest session is served meanwhile.
// Prints a line per attack; ends with 1 when a bound did not hold or the honest session stood still.
//
//   npx tsx test/soak/hostile.ts [--rounds 3] [--seeds 50]
import { once } from "node:events";
import { parseArgs } from "node:util";
import { MAX_LINKS_PER_USER } from "../../mesh/node/crowd.ts";
import type { MeshStream } from "../../mesh/node/node.ts";
import { Part } from "../hostile/part.ts";
import type { Outcome } from "../hostile/rogue.ts";
import { costOf, MIB, roundTrip, World } from "../hostile/world.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "3" }, seeds: { type: "string", default: "50" } },
});
const rounds = Number(values.rounds);
const seeds = Number(values.seeds);

const MAX_GROWTH_BYTES = 192 * MIB;
/** For an echo beside an attack: "never", not "slow". */
const STOOD_STILL_MS = 20_000;
Part.maxCallMs = 900_000;
let failures = 0;

function check(holds: boolean, what: string): void {
  if (holds) return;
  failures++;
  console.log(`  FAILED: ${what}`);
}

/** Runs an attack beside an honest session. */
async function attack(
  what: string,
  victim: Part,
  honest: MeshStream,
  work: () => Promise<Outcome | undefined>,
) {
  const trips: number[] = [];
  let over = false;
  const { result, cpuMs, bytes } = await costOf(victim, async () => {
    const done = work().finally(() => {
      over = true;
    });
    done.catch(() => undefined); // told below
    while (!over) {
      const startedAt = performance.now();
      await roundTrip(honest);
      trips.push(performance.now() - startedAt);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return done;
  });
  trips.sort((a, b) => a - b);
  const [median, worst] = [trips[trips.length >> 1], trips.at(-1) ?? 0];
  console.log(
    `${what}: ${cpuMs.toFixed(0)} ms of CPU, ${(bytes / MIB).toFixed(1)} MiB more; honest echo ` +
      `${median?.toFixed(1)} ms median, ${worst.toFixed(0)} ms worst of ${trips.length}; ${JSON.stringify(result ?? {})}`,
  );
  check(bytes < MAX_GROWTH_BYTES, `${what} made its victim hold ${(bytes / MIB).toFixed(0)} MiB`);
  check(worst < STOOD_STILL_MS, `${what} kept an honest session waiting for ${worst.toFixed(0)} ms`);
  return result;
}

async function attacks(): Promise<void> {
  const world = await World.begin();
  try {
    const rogue = await world.part("rogue");
    const reader = await world.part("reader");
    const honest = await world.echo();
    const onAgent = (what: string, name: string, ...args: unknown[]) =>
      attack(what, world.agent, honest, () => rogue.call<Outcome>(name, ...args));
    for (const keys of [1, 32, 256])
      await onAgent(`20,000 initiations from ${keys} keys`, "flood", { count: 20_000, keys });
    await onAgent("20,000 times one initiation", "flood", { count: 20_000, keys: 1, isReplay: true });
    await onAgent("50,000 messages that are none", "noise", 50_000);
    await onAgent("2,000 HELLOs without a permission", "knock", 2_000);
    await onAgent("100,000 streams", "openTooMany", 100_000);
    for (let i = 0; i < 10; i++) await onAgent("256 streams with 16 KB each", "hoardStreams");
    await onAgent("10,000 acknowledgements", "floodAcks", 10_000);
    await onAgent("windows without end", "optimist");
    for (let i = 0; i < 10; i++) await onAgent("64 streams, nothing acknowledged", "neverAck", 64);
    await onAgent("20,000 packets of probes, signals, datagrams", "babble", 20_000);
    await rogue.call("leave");
    const crowd = await onAgent("600 sessions of one user", "hoardUser", 600);
    check(Number(crowd?.kept) <= MAX_LINKS_PER_USER, `${crowd?.kept} sessions of one user`);
    await world.echo(); // somebody else comes in
    await rogue.call("leave");
    await attack("128 relay connections that read nothing, 16 MiB for each", world.server, honest, () =>
      reader.call("stuffRelay", { connections: 128, bytes: 16 * MIB }),
    );
    await reader.call("leave");
  } finally {
    await world.end();
  }
}

/** Sends `bytes` to the echo service. @returns how many came back, and how many of them were wrong */
async function echoed(stream: MeshStream, bytes: number): Promise<{ got: number; wrong: number }> {
  const pattern = (at: number): number => (at * 31 + (at >> 16)) % 251;
  const data = Uint8Array.from({ length: bytes }, (_, at) => pattern(at));
  let got = 0;
  let wrong = 0;
  const back = new Promise<void>((resolve) =>
    stream.on("data", (chunk: Buffer) => {
      for (const byte of chunk) if (byte !== pattern(got++)) wrong++;
      if (got >= bytes) resolve();
    }),
  );
  for (let at = 0; at < bytes; at += 65_536)
    if (!stream.write(data.subarray(at, at + 65_536))) await once(stream, "drain");
  await back;
  return { got, wrong };
}

/** @returns undefined when it took too long */
function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => resolve(undefined), ms);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** 4 MiB through a relay that does all it can do, another way with each seed. */
async function badRelays(): Promise<void> {
  for (let seed = 1; seed <= seeds; seed++) {
    const world = await World.begin(["badRelay", { seed }]);
    try {
      const stream = await within(3 * STOOD_STILL_MS, world.echo());
      check(stream !== undefined, `seed ${seed}: no session: ${world.describe()}`);
      if (!stream) continue;
      const share = 0.001 * (1 + (seed % 40));
      const badness = {
        drop: share,
        repeat: share,
        alter: share,
        reorder: share,
        lieAboutSource: share,
        junk: share,
      };
      await world.server.call("be", { ...badness, gone: share / 10 });
      const bytes = 4 * MIB;
      const startedAt = performance.now();
      const back = await within(3 * STOOD_STILL_MS, echoed(stream, bytes));
      check(
        back?.got === bytes && back.wrong === 0,
        `seed ${seed}: ${JSON.stringify(back ?? "never ended")}: ${world.describe()}`,
      );
      console.log(
        `relay seed ${seed}, share ${share.toFixed(3)}: ${(performance.now() - startedAt).toFixed(0)} ms`,
      );
    } finally {
      await within(STOOD_STILL_MS, world.end());
    }
  }
}

for (let round = 1; round <= rounds; round++) {
  console.log(`--- round ${round} of ${rounds}`);
  await attacks();
}
await badRelays();
console.log(failures === 0 ? "all bounds held" : `${failures} bounds did not hold`);
process.exit(failures === 0 ? 0 : 1);
