import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { ANSWER, type Answer, AnswerDecoder } from "../../mesh/wire/forward.ts";

/** Once everything has left, so long it may take to be read at the other end before both directions are given up. */
const LINGER_MS = 5_000;

/**
 * Joins a local connection with a stream, each direction for itself: an end is passed on as an end, while the other
 * direction flows on; a break is passed on as a break, so that nobody takes half of something for the whole of it.
 * Back-pressure crosses both ways.
 */
export function join(local: Duplex, stream: Duplex): void {
  breakTogether(local, stream);
  local.pipe(stream);
  stream.pipe(local);
}

/**
 * As `join`, for a stream whose first bytes are an ANSWER. What the local side writes leaves without waiting for it.
 *
 * @param onRefused told when the answer is no; the local connection is broken off
 */
export function joinAnswered(local: Duplex, stream: Duplex, onRefused: (answer: Answer) => void): void {
  breakTogether(local, stream);
  local.pipe(stream);
  const decoder = new AnswerDecoder();
  const onData = (chunk: Uint8Array) => {
    let answer: Answer | undefined;
    try {
      answer = decoder.push(chunk);
    } catch (error) {
      stream.destroy(error as Error);
      return;
    }
    if (!answer) return;
    stream.off("data", onData).off("end", onEnd);
    if (answer.status !== ANSWER.ok) {
      onRefused(answer);
      stream.destroy();
      breakOff(local);
      return;
    }
    if (answer.rest.length > 0) local.write(answer.rest);
    stream.pipe(local);
  };
  // An end before the answer is none of the target's: the connection was never made.
  const onEnd = () => breakOff(local);
  stream.on("data", onData).on("end", onEnd);
}

function breakTogether(local: Duplex, stream: Duplex): void {
  const giveUp = () => {
    if (!local.readableEnded || stream.destroyed) return void stream.destroy();
    // What the local side wrote before its end is still to arrive, also when it no longer waits for an answer.
    stream.unpipe(local);
    stream.resume();
    const arrive = () => setTimeout(() => stream.destroy(), LINGER_MS).unref();
    if (stream.writableFinished) arrive();
    else stream.once("finish", arrive);
  };
  local.on("error", giveUp);
  local.on("close", () => {
    if (!(local.readableEnded && local.writableFinished)) giveUp();
  });
  stream.on("error", () => breakOff(local));
  stream.on("close", () => {
    // After two orderly ends, what the local side has not taken yet is still on its way to it.
    if (!(stream.readableEnded && stream.writableFinished)) breakOff(local);
  });
}

/** Ends a local connection so that its program sees a broken one: TCP's reset where there is such a thing. */
export function breakOff(local: Duplex): void {
  if (local.destroyed) return;
  if (local instanceof Socket && local.remoteAddress !== undefined) local.resetAndDestroy();
  else local.destroy();
}
