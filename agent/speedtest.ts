import { ANSWER, decodeMetadata, encodeAnswer, SpeedtestMetadata } from "../mesh/wire/forward.ts";
import { describe } from "./logging.ts";
import { accept, closeOf, conclude, type IncomingStream, lastWords } from "./streams.ts";

/** More at once would only measure each other. */
export const MAX_SPEEDTESTS = 4;
/** Beyond the time asked for, a client may take so long to end its side. */
const SLACK_MS = 15_000;
const CHUNK = Buffer.alloc(256 * 1024);

/** Sends or takes bytes without meaning for a given time, to tell how fast the way between the two is. */
export class SpeedtestService {
  #running = 0;

  /** Never rejects. */
  async handle(stream: IncomingStream): Promise<void> {
    stream.on("error", () => {});
    let wanted: SpeedtestMetadata;
    try {
      wanted = decodeMetadata(SpeedtestMetadata, stream.metadata);
    } catch (error) {
      return conclude(stream, ANSWER.badRequest, describe(error));
    }
    if (this.#running >= MAX_SPEEDTESTS)
      return conclude(stream, ANSWER.resourceShortage, `${MAX_SPEEDTESTS} speed tests are already running`);
    this.#running++;
    const limit = setTimeout(() => stream.destroy(), wanted.durationMs + SLACK_MS);
    try {
      accept(stream);
      if (wanted.direction === "down") await send(stream, wanted.durationMs);
      else await receive(stream);
    } finally {
      clearTimeout(limit);
      this.#running--;
    }
  }
}

async function send(stream: IncomingStream, durationMs: number): Promise<void> {
  const closed = closeOf(stream);
  const endAt = performance.now() + durationMs;
  stream.resume();
  const pump = () => {
    while (!stream.destroyed && performance.now() < endAt) if (!stream.write(CHUNK)) return;
    finish();
  };
  const finish = () => {
    stream.removeListener("drain", pump);
    clearTimeout(timer);
    if (!stream.destroyed && !stream.writableEnded) stream.end();
  };
  const timer = setTimeout(finish, durationMs); // also when nothing drains any more
  stream.on("drain", pump);
  pump();
  await closed;
  clearTimeout(timer);
}

async function receive(stream: IncomingStream): Promise<void> {
  const closed = closeOf(stream);
  let bytes = 0;
  let startedAt = 0;
  stream.on("data", (chunk: Uint8Array) => {
    if (startedAt === 0) startedAt = performance.now();
    bytes += chunk.length;
  });
  const ended = new Promise<boolean>((resolve) => {
    stream.once("end", () => resolve(true));
    void closed.then(() => resolve(false));
  });
  if (!(await ended)) return;
  const durationMs = startedAt === 0 ? 0 : Math.round((performance.now() - startedAt) * 1_000) / 1_000;
  await lastWords(stream, encodeAnswer(ANSWER.ok, JSON.stringify({ bytes, durationMs })));
}
