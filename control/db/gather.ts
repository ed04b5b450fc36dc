// Many callers, few statements: what is asked while an earlier statement is under way goes into the next one together.

/** Default bound of what goes together: a statement of this many rows takes milliseconds. */
const MAX_AT_ONCE = 500;

/**
 * @param work does what all `items` ask, in the order they came; answers in the same order. What it throws, all its callers get.
 * @returns a function for one item, that settles with its answer
 */
export function gathered<Item, Answer>(
  work: (items: readonly Item[]) => Promise<readonly Answer[]>,
  maxAtOnce = MAX_AT_ONCE,
): (item: Item) => Promise<Answer> {
  let waiting: { item: Item; resolve(answer: Answer): void; reject(error: unknown): void }[] = [];
  let running = false;

  async function run(): Promise<void> {
    running = true;
    // Who asks in the same turn of the event loop goes together as well.
    await new Promise((resolve) => setImmediate(resolve));
    while (waiting.length > 0) {
      const some = waiting.slice(0, maxAtOnce);
      waiting = waiting.slice(maxAtOnce);
      try {
        const answers = await work(some.map(({ item }) => item));
        for (const [i, { resolve }] of some.entries()) resolve(answers[i]);
      } catch (error) {
        for (const { reject } of some) reject(error);
      }
    }
    running = false;
  }

  return (item) =>
    new Promise((resolve, reject) => {
      waiting.push({ item, resolve, reject });
      if (!running) void run();
    });
}
