import assert from "node:assert/strict";
import fc from "fast-check";
import { EscapeKeys } from "./escape.ts";

/** What comes of keys that arrive in these pieces; "<left>" where the user leaves. */
function typed(...pieces: string[]): string {
  const keys = new EscapeKeys();
  let sent = "";
  for (const piece of pieces) {
    const { bytes, leave } = keys.push(Buffer.from(piece, "latin1"));
    sent += Buffer.from(bytes).toString("latin1");
    if (leave) return `${sent}<left>`;
  }
  return sent;
}

describe("escape keys", () => {
  const cases: [string, string[], string][] = [
    ["~. leaves at the very start", ["~."], "<left>"],
    ["~. leaves after Enter, what came before is sent", ["ls\r~.x"], "ls\r<left>"],
    ["~. leaves after a line feed", ["ls\n", "~", "."], "ls\n<left>"],
    ["~. inside a line is text", ["a~."], "a~."],
    ["~~ types one ~, after which the line has begun", ["~~.", "\r"], "~.\r"],
    ["a ~ before another key is typed with it", ["~", "/bin"], "~/bin"],
    ["a ~ before Enter begins a new line", ["~\r~."], "~\r<left>"],
    ["a ~ waits for the next key", ["~"], ""],
  ];
  for (const [name, pieces, expected] of cases)
    it(name, () => {
      assert.equal(typed(...pieces), expected);
    });

  it("mean the same however the keys are cut into pieces", () => {
    const key = fc.constantFrom("~", ".", "\r", "\n", "a", "\xff");
    fc.assert(
      fc.property(fc.array(key, { maxLength: 12 }), fc.integer({ min: 1, max: 4 }), (all, size) => {
        const text = all.join("");
        const pieces = Array.from({ length: Math.ceil(text.length / size) }, (_, i) =>
          text.slice(i * size, (i + 1) * size),
        );
        assert.equal(typed(...pieces), typed(text));
      }),
    );
  });
});
