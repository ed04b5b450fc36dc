import assert from "node:assert/strict";
import fc from "fast-check";
import { EscapeKeys } from "./escape.ts";

/** What comes of keys that arrive in these pieces; "<leave>" and the like where something is asked of the client. */
function typed(...pieces: string[]): { sent: string; asked: string[] } {
  const keys = new EscapeKeys();
  let sent = "";
  const asked: string[] = [];
  for (const piece of pieces) {
    const { bytes, actions } = keys.push(Buffer.from(piece, "latin1"));
    sent += Buffer.from(bytes).toString("latin1");
    asked.push(...actions);
    if (actions.includes("leave")) break;
  }
  return { sent, asked };
}

describe("escape keys", () => {
  const cases: [string, string[], string, ...string[]][] = [
    ["~. leaves at the very start", ["~."], "", "leave"],
    ["~. leaves after Enter, what came before is sent", ["ls\r~.x"], "ls\r", "leave"],
    ["~. leaves after a line feed", ["ls\n", "~", "."], "ls\n", "leave"],
    ["~. inside a line is text", ["a~."], "a~."],
    ["~~ types one ~, after which the line has begun", ["~~.", "\r"], "~.\r"],
    ["a ~ before another key is typed with it", ["~", "/bin"], "~/bin"],
    ["a ~ before Enter begins a new line", ["~\r~."], "~\r", "leave"],
    ["a ~ waits for the next key", ["~"], ""],
    ["~? asks for help and sends nothing", ["~?ls\r"], "ls\r", "help"],
    ["~B asks for a break", ["\r~B"], "\r", "break"],
    ["~I asks how the session is doing", ["~I"], "", "info"],
    ["~^Z suspends", ["~\x1a"], "", "suspend"],
    ["one escape may follow another", ["~?~."], "", "help", "leave"],
  ];
  for (const [name, pieces, sent, ...asked] of cases)
    it(name, () => {
      assert.deepEqual(typed(...pieces), { sent, asked });
    });

  it("mean the same however the keys are cut into pieces", () => {
    const key = fc.constantFrom("~", ".", "?", "\r", "\n", "a", "\xff");
    fc.assert(
      fc.property(fc.array(key, { maxLength: 12 }), fc.integer({ min: 1, max: 4 }), (all, size) => {
        const text = all.join("");
        const pieces = Array.from({ length: Math.ceil(text.length / size) }, (_, i) =>
          text.slice(i * size, (i + 1) * size),
        );
        assert.deepEqual(typed(...pieces), typed(text));
      }),
    );
  });
});
