import assert from "node:assert/strict";
import { addUser, login, PASSWORD, startTestPlane, TestClient, type TestPlane } from "./testing.ts";

describe("signing in", () => {
  let test: TestPlane;
  before(async function () {
    this.timeout(60_000);
    test = await startTestPlane();
  });
  after(() => test.stop());

  it("the first user is made once, however many ask at the same moment", async () => {
    const again = await Promise.all(
      [1, 2, 3].map((n) =>
        test.anyone.post("/users/first", {
          email: `x${n}@example.com`,
          username: `x${n}`,
          password: PASSWORD,
        }),
      ),
    );
    assert.deepEqual(
      again.map(({ status }) => status),
      [409, 409, 409],
    );
    assert.equal((await test.anyone.get("/users/first")).status, 200);
    const me = await test.owner.get("/users/me");
    assert.equal(me.body.username, "ada");
    assert.deepEqual(
      me.body.roles.map(({ name }: { name: string }) => name),
      ["owner"],
    );
    assert.equal(me.body.organization_ids.length, 1);
    assert.ok(!JSON.stringify(me.body).includes("argon2"));
  });

  it("a wrong password and an unknown user get the same answer", async () => {
    const wrong = await test.anyone.post("/users/login", { email: "ada@example.com", password: "wrong" });
    const unknown = await test.anyone.post("/users/login", {
      email: "nobody@example.com",
      password: "wrong",
    });
    assert.equal(wrong.status, 401);
    const same = ({ message, detail, code }: typeof wrong.body) => ({ message, detail, code });
    assert.deepEqual(same(wrong.body), same(unknown.body));
    assert.equal(wrong.status, unknown.status);
  });

  it("the token works as header, bearer, cookie and query parameter, and no more after logout", async () => {
    const { token = "" } = await login(test.anyone, "ADA@example.com");
    const ways: [string, Record<string, string>][] = [
      ["/users/me", { "Coder-Session-Token": token }],
      ["/users/me", { Authorization: `Bearer ${token}` }],
      ["/users/me", { Cookie: `other=1; coder_session_token=${token}` }],
      [`/users/me?coder_session_token=${token}`, {}],
    ];
    for (const [path, headers] of ways)
      assert.equal(
        (await test.anyone.call("GET", path, undefined, headers)).status,
        200,
        JSON.stringify(headers),
      );
    await new TestClient(test.plane.url, token).post("/users/logout");
    for (const [path, headers] of ways)
      assert.equal((await test.anyone.call("GET", path, undefined, headers)).status, 401);
  });

  it("a key's id opens nothing with another secret, be it another key's", async () => {
    const [mine, other] = await Promise.all([1, 2].map(() => login(test.anyone, "ada@example.com")));
    const [id, secret = ""] = (mine.token ?? "").split("-");
    const changed = `${secret.slice(0, -1)}${secret.endsWith("x") ? "y" : "x"}`;
    for (const wrong of [changed, other.token?.split("-")[1], "0".repeat(secret.length)])
      assert.equal((await new TestClient(test.plane.url, `${id}-${wrong}`).get("/users/me")).status, 401);
    assert.equal((await mine.get("/users/me")).status, 200);
  });

  it("a page of another site can't use the cookie to change anything", async () => {
    const { token = "" } = await login(test.anyone, "ada@example.com");
    const cookie = `coder_session_token=${token}`;
    const post = (origin: string) =>
      test.anyone.call("POST", "/users/me/keys", {}, { Cookie: cookie, Origin: origin });
    assert.equal((await post("https://evil.example")).status, 403);
    assert.equal((await post(test.plane.url)).status, 201);
  });

  it("a session slides with use and ends a day after the last; a token ends at its time", async () => {
    const { knex } = test.database;
    const client = await login(test.anyone, "ada@example.com");
    const id = client.token?.split("-")[0];
    const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3600_000);
    await knex("api_keys")
      .where({ id })
      .update({ last_used_at: hoursAgo(12), expires_at: new Date(Date.now() + 12 * 3600_000) });
    assert.equal((await client.get("/users/me")).status, 200);
    const key = await knex("api_keys").where({ id }).first();
    assert.ok(key.expires_at.getTime() > Date.now() + 23 * 3600_000);
    await knex("api_keys")
      .where({ id })
      .update({ expires_at: hoursAgo(0.01) });
    assert.equal((await client.get("/users/me")).status, 401);

    const { body } = await test.owner.post("/users/me/keys/tokens", {
      token_name: "ci",
      lifetime: 3600_000 * 1e6,
    });
    const token = new TestClient(test.plane.url, body.key);
    assert.equal((await token.get("/users/me")).status, 200);
    const listed = await test.owner.get("/users/me/keys/tokens");
    assert.equal(listed.body[0].token_name, "ci");
    assert.equal(listed.body[0].lifetime_seconds, 3600);
    assert.equal((await test.owner.post("/users/me/keys/tokens", { token_name: "ci" })).status, 409);
    assert.equal((await test.owner.delete(`/users/me/keys/${listed.body[0].id}`)).status, 204);
    assert.equal((await token.get("/users/me")).status, 401);
  });

  it("a token of narrow scope can't read, nor make itself a wider one", async () => {
    const { body } = await test.owner.post("/users/me/keys/tokens", { scope: "application_connect" });
    const narrow = new TestClient(test.plane.url, body.key);
    assert.equal((await narrow.get("/users/me")).status, 404);
    assert.equal((await narrow.post("/users/me/keys/tokens", { scope: "all" })).status, 404);
  });

  it("a weak password and a bad name are refused with the field that is wrong", async () => {
    const bad = await test.owner.post("/users", {
      email: "b@example.com",
      username: "b",
      password: "12345678",
    });
    assert.equal(bad.status, 400);
    assert.equal(bad.body.validations?.[0].field, "password");
    const name = await test.owner.post("/users", {
      email: "b@example.com",
      username: "b b",
      password: PASSWORD,
    });
    assert.equal(name.body.validations?.[0].field, "username");
    const twice = await test.owner.post("/users", {
      email: "z@example.com",
      username: "ADA",
      password: PASSWORD,
    });
    assert.equal(twice.status, 409);
    assert.equal(twice.body.validations?.[0].field, "username");
  });

  it("a text that the database can't keep is refused with its field, not answered with a 500", async () => {
    for (const name of ["a\u0000b", "a\ud800b"]) {
      const refused = await test.owner.post("/users", {
        email: "nul@example.com",
        username: "nul",
        name,
        password: PASSWORD,
      });
      assert.equal(refused.status, 400);
      assert.equal(refused.body.validations?.[0].field, "name");
    }
    assert.equal((await test.owner.get("/users?q=a%00b")).status, 400);
  });

  it("a member sees and changes only themselves", async () => {
    const member = await addUser(test.owner, "mel");
    assert.equal((await member.get("/users/ada")).status, 404);
    assert.equal((await member.get("/users/nobody")).status, 404);
    assert.deepEqual((await member.get("/users")).body.count, 1);
    assert.equal(
      (await member.post("/users", { email: "c@example.com", username: "c", password: PASSWORD })).status,
      403,
    );
    assert.equal((await member.put("/users/me/roles", { roles: ["owner"] })).status, 400);
    assert.equal((await member.get("/deployment/config")).status, 404);
    assert.equal((await member.get("/users/ada/keys/tokens")).status, 404);
    const checks = await member.post("/authcheck", {
      checks: {
        users: { object: { resource_type: "user" }, action: "create" },
        mine: { object: { resource_type: "workspace", owner_id: "me" }, action: "create" },
        what: { object: { resource_type: "unknown" }, action: "read" },
      },
    });
    assert.deepEqual(checks.body, { users: false, mine: true, what: false });
  });

  it("a user admin makes members, but neither owners nor changes to one", async () => {
    const admin = await addUser(test.owner, "uma", ["user-admin"]);
    const made = await admin.post("/users", { email: "d@example.com", username: "d", password: PASSWORD });
    assert.equal(made.status, 201);
    assert.equal(
      (
        await admin.post("/users", {
          email: "e@example.com",
          username: "e",
          password: PASSWORD,
          roles: ["owner"],
        })
      ).status,
      403,
    );
    assert.equal((await admin.put("/users/d/roles", { roles: ["owner"] })).status, 403);
    assert.equal((await admin.put("/users/d/roles", { roles: ["auditor"] })).status, 200);
    assert.equal((await admin.put("/users/ada/password", { password: `${PASSWORD}2` })).status, 403);
  });

  it("a suspended user is out at once and can't come back until activated", async () => {
    const member = await addUser(test.owner, "sam");
    await test.owner.put("/users/sam/status/suspend");
    const refused = await member.get("/users/me");
    assert.equal(refused.status, 401);
    assert.match(refused.body.message, /suspended/);
    const again = await test.anyone.post("/users/login", { email: "sam@example.com", password: PASSWORD });
    assert.equal(again.body.code, "ERR_USER_SUSPENDED");
    await test.owner.put("/users/sam/status/activate");
    assert.equal((await member.get("/users/me")).status, 200);
  });

  it("a new password wants the old one and ends every other session", async () => {
    const member = await addUser(test.owner, "pam");
    const other = await login(test.anyone, "pam@example.com");
    const change = (old_password: string) =>
      member.put("/users/me/password", { old_password, password: `${PASSWORD}-new` });
    assert.equal((await change("wrong")).status, 400);
    assert.equal((await change(PASSWORD)).status, 204);
    assert.equal((await member.get("/users/me")).status, 200);
    assert.equal((await other.get("/users/me")).status, 401);
  });

  it("what clients ask first is answered, with headers that keep a browser from mischief", async () => {
    const info = await test.anyone.get("/buildinfo");
    assert.match(info.body.version, /^v\d+\.\d+\.\d+/);
    assert.equal(info.headers.get("x-coder-build-version"), info.body.version);
    assert.equal(info.headers.get("x-content-type-options"), "nosniff");
    assert.ok(info.headers.get("x-request-id"));
    assert.equal((await test.anyone.get("/healthz")).body, "OK");
    assert.deepEqual((await test.owner.get("/entitlements")).body.warnings, []);
    assert.equal((await test.owner.get("/organizations")).body[0].is_default, true);
    assert.equal((await test.anyone.get("/nothing")).status, 404);
    assert.equal((await test.anyone.delete("/buildinfo")).status, 405);
    assert.equal((await test.owner.call("POST", "/users", new TextEncoder().encode("{"))).status, 400);
  });

  it("no secret reaches the log, not even from a statement that fails", async () => {
    const { knex } = test.database;
    await knex.raw("alter table users add constraint test_only check (username <> 'unlucky')");
    const failed = await test.owner.post("/users", {
      email: "u@example.com",
      username: "unlucky",
      password: PASSWORD,
    });
    assert.deepEqual([failed.status, failed.body.code], [500, "ERR_INTERNAL"]);
    assert.match(test.logged(), /test_only.*SQLSTATE 23514/);
    assert.ok(!test.logged().includes("$argon2id$"));
    await test.anyone.get(`/users/me?coder_session_token=${test.owner.token}`);
    const logged = test.logged();
    assert.ok(logged.length > 0);
    for (const secret of [PASSWORD, test.owner.token ?? "", test.owner.token?.split("-")[1] ?? ""])
      assert.ok(!logged.includes(secret));
  });

  it("logins are limited by address, and the answer says when to try again", async () => {
    let limited: Awaited<ReturnType<TestClient["post"]>> | undefined;
    for (let i = 0; i < 80 && limited?.status !== 429; i++)
      limited = await test.anyone.post("/users/login", { email: "", password: "" });
    assert.equal(limited?.status, 429);
    assert.ok(Number(limited?.headers.get("retry-after")) >= 1);
  });
});
