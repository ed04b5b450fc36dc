import assert from "node:assert/strict";
import { logFileName, logLine } from "./log-file.ts";
import { planSsh, type SshFlags } from "./options.ts";

const flags = (some: Partial<SshFlags> = {}): SshFlags => ({
  wait: "auto",
  env: [],
  localForward: [],
  remoteForward: [],
  resumeWindow: "24h",
  networkInfoInterval: "5s",
  ...some,
});

describe("what coder ssh is told", () => {
  it("by default: a shell as the template says, kept for a day", () => {
    assert.deepEqual(planSsh(flags(), {}, []), {
      wait: "auto",
      autostart: true,
      env: {},
      tty: undefined,
      stdio: false,
      agent: undefined,
      x11: undefined,
      local: [],
      remote: [],
      noCommand: false,
      resumeWindowMs: 86_400_000,
      logDir: undefined,
      networkInfo: undefined,
    });
  });

  it("flags and variables mean the same", () => {
    const env = { CODER_SSH_FORWARD_AGENT: "true", CODER_SSH_DISABLE_AUTOSTART: "true" };
    const plan = planSsh(flags(), env, []);
    assert.deepEqual([plan.agent, plan.autostart], [{ socket: undefined }, false]);
    assert.deepEqual(planSsh(flags({ forwardAgent: true }), {}, []).agent, { socket: undefined });
    assert.deepEqual(planSsh(flags({ identityAgent: "/s" }), {}, []).agent, { socket: "/s" });
    assert.equal(planSsh(flags({ wait: false }), {}, []).wait, "no");
    assert.deepEqual(planSsh(flags({ forwardX11Trusted: true }), {}, []).x11, { trusted: true });
    assert.deepEqual(planSsh(flags({ forwardX11: true }), {}, []).x11, { trusted: false });
    assert.equal(planSsh(flags({ command: false, localForward: ["1:h:2"] }), {}, []).noCommand, true);
    assert.deepEqual(planSsh(flags({ env: ["A=b=c", "B="] }), {}, []).env, { A: "b=c", B: "" });
  });

  const bad: [string, Partial<SshFlags>, string[], string][] = [
    ["a variable without a value", { env: ["A"] }, [], "ERR_BAD_ENV"],
    ["a variable with an impossible name", { env: ["1A=x"] }, [], "ERR_BAD_ENV"],
    ["a forward to nowhere", { localForward: ["8080"] }, [], "ERR_BAD_FORWARD"],
    ["a remote forward without a port", { remoteForward: ["x:h:1"] }, [], "ERR_BAD_FORWARD"],
    ["a resume window without a unit", { resumeWindow: "10" }, [], "ERR_BAD_DURATION"],
    ["a resume window of a week", { resumeWindow: "168h" }, [], "ERR_BAD_DURATION"],
    ["-t and -T", { forceTty: true, disableTty: true }, [], "ERR_BAD_OPTION"],
    ["-N with a command", { command: false, localForward: ["1:h:2"] }, ["ls"], "ERR_BAD_OPTION"],
    ["-N with nothing to do", { command: false }, [], "ERR_BAD_OPTION"],
    ["--stdio with a command", { stdio: true }, ["ls"], "ERR_BAD_OPTION"],
    ["an interval of nothing", { networkInfoDir: "/x", networkInfoInterval: "0s" }, [], "ERR_BAD_DURATION"],
  ];
  for (const [name, some, words, code] of bad)
    it(`${name} is refused, with the next step`, () => {
      assert.throws(
        () => planSsh(flags(some), {}, words),
        (error: { code: string; hint?: string }) => error.code === code && (error.hint ?? "").length > 0,
      );
    });

  it("log files are one per process, their lines one per event", () => {
    const at = new Date("2025-01-31T09:59:58.123Z");
    assert.equal(logFileName("ssh", at, 4242), "coder-ssh-20250131-095958-4242.log");
    assert.equal(logLine("DEBUG", {}, "said", at), "2025-01-31T09:59:58.123Z DEBUG said\n");
    const fields = { n: 1, error: new Error("why\nnot"), text: "a\nb" };
    assert.equal(
      logLine("WARN", fields, "said", at),
      '2025-01-31T09:59:58.123Z WARN said {"n":1,"error":"why\\nnot","text":"a\\nb"}\n',
    );
  });
});
