import { setFlagsFromString } from "node:v8";

let isTuned = false;

/**
 * Tells V8 to mark its heap in one go when it collects all of it, instead of step by step beside the program.
 *
 * Packets are buffers outside the heap: a gigabyte of them for each 250 MB of bulk. V8 begins to mark step by step when
 * 64 MB of such buffers have come since the last time, and frees the young ones when there are 64 MB of them. Which of the
 * two comes first is chance; once it is the marking, it comes first again and again, and the process uses up to three
 * times the CPU time. Marked in one go, the heap of a node (some 30 MB) takes some tens of milliseconds, rarely.
 *
 * For processes that carry packets and hold little else: nodes and relays. Has no effect on what a process may hold.
 */
export function markHeapAtOnce(): void {
  if (isTuned) return;
  isTuned = true;
  // Looked at whenever marking is to begin, so it may be set while the process runs.
  setFlagsFromString("--no-incremental-marking");
}
