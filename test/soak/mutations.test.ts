import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { changed, mutations } from "./mutations.ts";

const root = path.dirname(path.dirname(path.dirname(fileURLToPath(import.meta.url))));

describe("the faults that test/soak/broken.ts tries", () => {
  it("fit the code: whoever changes a line that one is about changes the fault as well", () => {
    for (const { name, changes, specs } of mutations) {
      const texts = new Map<string, string>();
      for (const change of changes) {
        const before = texts.get(change.file) ?? readFileSync(path.join(root, change.file), "utf8");
        const after = changed(before, change);
        assert.notEqual(after, before, name);
        texts.set(change.file, after);
      }
      for (const spec of specs) assert.ok(existsSync(path.join(root, spec)), `${name}: there is no ${spec}`);
    }
  });

  it("have names of their own", () => {
    assert.equal(new Set(mutations.map(({ name }) => name)).size, mutations.length);
  });
});
