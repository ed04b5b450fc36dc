import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fc from "fast-check";
import { sttyCalls } from "./modes.ts";

/** What OpenSSH 10 sends from a Linux terminal emulator. */
const USUAL = {
  ...{ VINTR: 3, VQUIT: 28, VERASE: 127, VKILL: 21, VEOF: 4, VEOL: 255, VEOL2: 255, VSTART: 17, VSTOP: 19 },
  ...{
    VSUSP: 26,
    VREPRINT: 18,
    VWERASE: 23,
    VLNEXT: 22,
    VDISCARD: 15,
    IGNPAR: 0,
    PARMRK: 0,
    INPCK: 0,
    ISTRIP: 0,
  },
  ...{
    INLCR: 0,
    IGNCR: 0,
    ICRNL: 1,
    IUCLC: 0,
    IXON: 1,
    IXANY: 0,
    IXOFF: 0,
    IMAXBEL: 1,
    IUTF8: 1,
    ISIG: 1,
    ICANON: 1,
  },
  ...{
    XCASE: 0,
    ECHO: 1,
    ECHOE: 1,
    ECHOK: 1,
    ECHONL: 0,
    NOFLSH: 0,
    TOSTOP: 0,
    IEXTEN: 1,
    ECHOCTL: 1,
    ECHOKE: 1,
  },
  ...{
    PENDIN: 0,
    OPOST: 1,
    OLCUC: 0,
    ONLCR: 1,
    OCRNL: 0,
    ONOCR: 0,
    ONLRET: 0,
    CS7: 1,
    CS8: 1,
    PARENB: 0,
    PARODD: 0,
  },
  ...{ TTY_OP_ISPEED: 38_400, TTY_OP_OSPEED: 38_400 },
};

describe("terminal modes", () => {
  it("only what differs from a fresh terminal is set", () => {
    assert.deepEqual(sttyCalls(USUAL), [["eol", "undef", "eol2", "undef", "-ixany"]]);
    assert.deepEqual(sttyCalls({}), [["eol", "undef", "eol2", "undef"]]);
  });

  it("characters are written as stty reads them", () => {
    const [call] = sttyCalls({ VINTR: 7, VQUIT: 255, VERASE: 8, VKILL: 64, VEOF: 200, VEOL: 127, VSTOP: 0 });
    const pairs = [
      "intr",
      "^G",
      "quit",
      "undef",
      "erase",
      "^H",
      "kill",
      "@",
      "eof",
      "200",
      "eol",
      "^?",
      "eol2",
    ];
    assert.deepEqual(call, [...pairs, "undef", "stop", "undef"]);
  });

  it("what not every stty knows is asked for apart, so that it can't spoil the rest", () => {
    const calls = sttyCalls({ ECHO: 0, OLCUC: 1, TTY_OP_OSPEED: 9_600 });
    assert.deepEqual(calls.slice(1), [["olcuc"], ["9600"]]);
    assert.ok(calls[0].includes("-echo"));
  });

  it("no client can make a word that stty would not expect", () => {
    const names = fc.constantFrom(...Object.keys(USUAL), "NOSUCH", "__PROTO__");
    const seed = Math.floor(Math.random() * 2 ** 31);
    console.log(`      seed ${seed}`);
    fc.assert(
      fc.property(fc.dictionary(names, fc.nat(0xffffffff)), (modes) => {
        for (const word of sttyCalls(modes).flat()) assert.match(word, /^(-?[a-z0-9]+|\^.|undef|[!-~])$/);
      }),
      { seed },
    );
  });

  it("this system's stty takes every common word", function () {
    if (spawnSync("script", ["--version"]).status !== 0) {
      console.log("skipped: needs script(1) for a terminal");
      this.skip();
    }
    const inverted = Object.entries(USUAL).map(([name, value]) => [
      name,
      name.startsWith("V") ? 200 : 1 - value,
    ]);
    const [call] = sttyCalls(Object.fromEntries(inverted));
    const quoted = call.map((word) => `'${word}'`).join(" ");
    const { stdout } = spawnSync("script", ["-qec", `stty ${quoted}; echo status=$?`, "/dev/null"], {
      input: "",
    });
    assert.match(stdout.toString(), /status=0/);
  });
});
