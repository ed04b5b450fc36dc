import assert from "node:assert/strict";
import fc from "fast-check";
import { CliError } from "../errors.ts";
import { formatEndpoint, MAX_FORWARDS, parsePortForwards, parseSshForward } from "./spec.ts";

const short = (texts: string[], protocol: "tcp" | "udp" = "tcp") =>
  parsePortForwards(texts, protocol).map(
    ({ address, localPort, remotePort }) => `${address ?? ""}|${localPort}|${remotePort}`,
  );

describe("port forwards", () => {
  const good: [string, string[]][] = [
    ["8080", ["|8080|8080"]],
    ["8080:3000", ["|8080|3000"]],
    ["0:3000", ["|0|3000"]],
    ["0.0.0.0:8080", ["0.0.0.0|8080|8080"]],
    ["127.0.0.1:8080:80", ["127.0.0.1|8080|80"]],
    ["localhost:8080:80", ["|8080|80"]],
    ["[::1]:8080:80", ["::1|8080|80"]],
    ["8080-8082", ["|8080|8080", "|8081|8081", "|8082|8082"]],
    ["8080-8081:9080-9081", ["|8080|9080", "|8081|9081"]],
    ["1.2.3.4:5-6:7-8", ["1.2.3.4|5|7", "1.2.3.4|6|8"]],
    ["8080,9000:90, 7000", ["|8080|8080", "|9000|90", "|7000|7000"]],
  ];
  for (const [text, expected] of good) it(`reads ${text}`, () => assert.deepEqual(short([text]), expected));

  const bad: [string, RegExp][] = [
    ["", /a port is missing/],
    ["abc", /"abc" is no port/],
    ["8080:", /a port is missing/],
    [":8080", /is no local address/],
    ["0", /the remote port must be named/],
    ["8080:0", /from 1 to 65535/],
    ["65536", /from 0 to 65535/],
    ["8090-8080", /runs backwards/],
    ["8080-8081:9080-9082", /2 local ports for 3 remote/],
    ["8080:9080-9081", /1 local ports for 2 remote/],
    ["8080,8080", /named twice/],
    ["example.com:80:80", /is no local address/],
    ["1-2000", /more than 512/],
    ["8080:80:80:80", /it is not/],
    ["[::1]", /it is not/],
    ["-1", /is no port/],
    ["0-3:1-4", /begins no range/],
  ];
  for (const [text, why] of bad)
    it(`refuses "${text}" with the next step`, () => {
      assert.throws(
        () => parsePortForwards([text], "tcp"),
        (error: unknown) => {
          assert.ok(error instanceof CliError);
          assert.equal(error.code, "ERR_BAD_FORWARD");
          assert.match(error.message, why);
          assert.match(error.hint ?? "", /8080/);
          return true;
        },
      );
    });

  it("any list within the limits is read back as it was written", () => {
    const port = fc.integer({ min: 1, max: 65_535 });
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(port, port), { minLength: 1, maxLength: 20, selector: ([a]) => a }),
        (pairs) => {
          const text = pairs.map(([local, remote]) => `${local}:${remote}`).join(",");
          assert.deepEqual(
            short([text], "udp"),
            pairs.map(([local, remote]) => `|${local}|${remote}`),
          );
        },
      ),
    );
  });

  it("any text is read or refused, never more", () => {
    const text = fc.stringMatching(/^[0-9a-z.:,[\]*-]{0,24}$/);
    fc.assert(
      fc.property(text, (spec) => {
        try {
          for (const { localPort, remotePort } of parsePortForwards([spec], "tcp")) {
            assert.ok(localPort >= 0 && localPort <= 65_535 && remotePort >= 1 && remotePort <= 65_535);
          }
        } catch (error) {
          assert.ok(error instanceof CliError, String(error));
        }
      }),
    );
  });

  it("the limit itself is allowed", () => {
    assert.equal(parsePortForwards([`1-${MAX_FORWARDS}`], "tcp").length, MAX_FORWARDS);
  });
});

describe("ssh's forwards", () => {
  const good: [string, string, string][] = [
    ["8080:localhost:80", ":8080", "localhost:80"],
    ["0:localhost:80", ":0", "localhost:80"],
    ["127.0.0.1:8080:db:5432", "127.0.0.1:8080", "db:5432"],
    ["*:8080:db:5432", "*:8080", "db:5432"],
    [":8080:db:5432", "*:8080", "db:5432"],
    ["[::1]:8080:[fe80::1]:80", "[::1]:8080", "[fe80::1]:80"],
    ["8080:/run/a.sock", ":8080", "/run/a.sock"],
    ["/run/a.sock:localhost:80", "/run/a.sock", "localhost:80"],
    ["/run/a.sock:/run/b.sock", "/run/a.sock", "/run/b.sock"],
    ["localhost:8080:/run/b.sock", "localhost:8080", "/run/b.sock"],
  ];
  for (const [text, listen, target] of good)
    it(`reads ${text}`, () => {
      const forward = parseSshForward(text, "-L");
      assert.deepEqual([formatEndpoint(forward.listen), formatEndpoint(forward.target)], [listen, target]);
    });

  for (const text of [
    "",
    "8080",
    "8080:localhost",
    "8080:localhost:",
    "8080::80",
    "x:localhost:80",
    "8080:localhost:0",
    "8080:localhost:99999",
    "a:b:c:d:e",
    "8080:ho st:80",
    "/run/a.sock",
    `/${"x".repeat(200)}:localhost:80`,
    "[::1:8080:localhost:80",
    "1:2:/a:/b",
  ])
    it(`refuses "${text.slice(0, 40)}"`, () => {
      for (const flag of ["-L", "-R"] as const)
        assert.throws(() => parseSshForward(text, flag), { code: "ERR_BAD_FORWARD" });
    });

  it("any text is read or refused, never more", () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[0-9a-z.:/[\]* -]{0,24}$/), (text) => {
        try {
          parseSshForward(text, "-R");
        } catch (error) {
          assert.ok(error instanceof CliError, String(error));
        }
      }),
    );
  });
});
