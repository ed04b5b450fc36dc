import assert from "node:assert/strict";
import { JobStatus } from "../contract/jobs.ts";
import { BuildStatus, Transition } from "../contract/workspaces.ts";
import {
  AGENT_INACTIVE_MS,
  agentHealth,
  agentStatus,
  buildStatus,
  buildsThatAre,
  connectProblem,
  nextBuildProblem,
  versionProblem,
} from "./status.ts";

describe("status of builds and versions", () => {
  it("every build status is reached, and the search's way back finds exactly those builds", () => {
    const seen = new Set<string>();
    for (const transition of Transition.options) {
      for (const job of JobStatus.options) {
        const status = buildStatus(transition, job);
        seen.add(status);
        assert.ok(
          buildsThatAre(status).some((build) => build.transition === transition && build.job === job),
          `${transition} ${job}`,
        );
      }
    }
    assert.deepEqual(seen, new Set(BuildStatus.options));
    assert.equal(BuildStatus.options.flatMap(buildsThatAre).length, 3 * 6);
  });

  it("a version can be used only once its import succeeded and while it isn't archived", () => {
    assert.deepEqual(
      JobStatus.options.filter((job) => !versionProblem(job)),
      ["succeeded"],
    );
    assert.match(versionProblem("succeeded", true) ?? "", /archived/);
  });

  it("a build waits for the one before, and a failed one can be retried or deleted", () => {
    assert.match(nextBuildProblem({ transition: "start", job: "running" }, "stop") ?? "", /under way/);
    assert.equal(nextBuildProblem({ transition: "start", job: "failed" }, "delete"), undefined);
    assert.equal(nextBuildProblem({ transition: "delete", job: "failed" }, "start"), undefined);
    assert.match(nextBuildProblem({ transition: "delete", job: "succeeded" }, "start") ?? "", /deleted/);
  });

  for (const [transition, job, lastSucceeded, opens] of [
    ["start", "succeeded", "start", true],
    ["start", "running", "start", true],
    ["start", "running", "stop", false],
    ["start", "pending", undefined, false],
    ["start", "failed", "start", true],
    ["start", "failed", undefined, false],
    ["stop", "running", "start", false],
    ["stop", "failed", "start", true],
    ["stop", "canceled", "start", true],
    ["stop", "succeeded", "stop", false],
    ["delete", "running", "start", false],
    ["delete", "failed", "start", false],
    ["delete", "succeeded", "delete", false],
  ] as const) {
    it(`after ${transition} ${job} over ${lastSucceeded ?? "nothing"}, sessions ${opens ? "open" : "are refused"}`, () =>
      assert.equal(connectProblem({ transition, job }, lastSucceeded) === undefined, opens));
  }
});

describe("status of an agent", () => {
  const at = (ms: number) => new Date(ms);
  const never = {
    created_at: at(0),
    first_connected_at: null,
    last_connected_at: null,
    disconnected_at: null,
    connection_timeout_seconds: 120,
  };
  const seen = { ...never, first_connected_at: at(1000), last_connected_at: at(1000) };

  it("is connecting until its timeout, and for ever without one", () => {
    assert.equal(agentStatus(never, 120_000), "connecting");
    assert.equal(agentStatus(never, 120_001), "timeout");
    assert.equal(agentStatus({ ...never, connection_timeout_seconds: 0 }, 1e12), "connecting");
  });

  it("is disconnected when it said so or fell silent, and connected again when heard of later", () => {
    assert.equal(agentStatus(seen, 1000 + AGENT_INACTIVE_MS), "connected");
    assert.equal(agentStatus(seen, 1001 + AGENT_INACTIVE_MS), "disconnected");
    assert.equal(agentStatus({ ...seen, disconnected_at: at(1500) }, 1600), "disconnected");
    assert.equal(
      agentStatus({ ...seen, disconnected_at: at(1500), last_connected_at: at(2000) }, 2100),
      "connected",
    );
  });

  it("is healthy only when connected and its startup script succeeded", () => {
    assert.deepEqual(agentHealth("connected", "ready"), { healthy: true });
    for (const [status, lifecycle] of [
      ["connecting", "created"],
      ["timeout", "created"],
      ["disconnected", "ready"],
      ["connected", "start_error"],
      ["connected", "shutting_down"],
    ] as const)
      assert.equal(agentHealth(status, lifecycle).healthy, false);
  });
});
