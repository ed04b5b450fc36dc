import type { Duplex } from "node:stream";
import { ANSWER, type Answer, AnswerDecoder } from "../../mesh/wire/forward.ts";
import { CliError, EXIT } from "../errors.ts";

/** For an agent that is there: it connects within 10 s or says so. A stalled connection may take longer, so callers choose. */
export const ANSWER_TIMEOUT_MS = 30_000;

/** What the agent said instead of serving us, as an error for people. */
export function refusal(answer: Pick<Answer, "status" | "text">, what: string): CliError {
  const why =
    answer.text || (answer.status === ANSWER.prohibited ? "it is not allowed" : "it gave no reason");
  return new CliError("ERR_AGENT_REFUSED", `the workspace refused ${what}: ${why}`, {
    exitCode: EXIT.failure,
  });
}

/**
 * Reads the next ANSWER of a stream and leaves what follows it to be read, the stream paused.
 *
 * @param what for messages: "the list of sessions"
 * @throws {CliError} ERR_AGENT_REFUSED, ERR_AGENT_SILENT; the stream's own error, the signal's reason
 */
export function readAnswer(
  stream: Duplex,
  what: string,
  options: { timeoutMs?: number; signal?: AbortSignal } = {},
): Promise<string> {
  const { timeoutMs = ANSWER_TIMEOUT_MS, signal } = options;
  return new Promise((resolve, reject) => {
    const decoder = new AnswerDecoder();
    const settle = (act: () => void) => {
      clearTimeout(timer);
      stream.off("data", onData).off("error", fail).off("end", onEnd).off("close", onEnd);
      signal?.removeEventListener("abort", onAbort);
      stream.pause();
      act();
    };
    const fail = (error: unknown) => settle(() => reject(error));
    const silent = (how: string) =>
      new CliError("ERR_AGENT_SILENT", `the workspace ${how} ${what}`, {
        hint: "Its agent may be of an older version: restart the workspace.",
      });
    const onEnd = () => fail(silent("did not answer for"));
    const onAbort = () => fail(signal?.reason);
    const timer = setTimeout(
      () => fail(silent(`took longer than ${timeoutMs / 1_000} s to answer for`)),
      timeoutMs,
    );
    const onData = (chunk: Uint8Array) => {
      try {
        const answer = decoder.push(chunk);
        if (!answer) return;
        settle(() => {
          if (answer.rest.length > 0) stream.unshift(answer.rest);
          if (answer.status === ANSWER.ok) resolve(answer.text);
          else reject(refusal(answer, what));
        });
      } catch (error) {
        fail(error);
      }
    };
    if (signal?.aborted) return onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    stream.on("data", onData).on("error", fail).on("end", onEnd).on("close", onEnd);
    stream.resume(); // paused, if this is the second answer
  });
}
