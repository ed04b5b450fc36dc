// TAI64N timestamps: seconds u64 BE from 2^62 + 10 at the Unix epoch | nanoseconds u32 BE; they compare as bytes.
// A responder keeps the latest of each peer and refuses any that is not later: so a recorded initiation is useless.

export const TAI64N_BYTES = 12;

/** Makes strictly increasing timestamps, also when the wall clock stands still or goes back. */
export class Tai64nClock {
  #seconds = 0;
  #nanoseconds = 0;

  /** @param wallClockMs milliseconds since the Unix epoch @returns 12 bytes: max(last + 1 ns, wallClockMs) */
  next(wallClockMs: number): Uint8Array {
    const seconds = Math.max(0, Math.floor(wallClockMs / 1000));
    const nanoseconds = Math.max(0, Math.floor((wallClockMs - seconds * 1000) * 1e6));
    if (seconds > this.#seconds || (seconds === this.#seconds && nanoseconds > this.#nanoseconds)) {
      this.#seconds = seconds;
      this.#nanoseconds = nanoseconds;
    } else if (++this.#nanoseconds === 1e9) {
      this.#seconds++;
      this.#nanoseconds = 0;
    }
    const stamp = new Uint8Array(TAI64N_BYTES);
    const view = new DataView(stamp.buffer);
    const low = (this.#seconds % 0x1_0000_0000) + 10;
    view.setUint32(
      0,
      0x4000_0000 + Math.floor(this.#seconds / 0x1_0000_0000) + Math.floor(low / 0x1_0000_0000),
    );
    view.setUint32(4, low);
    view.setUint32(8, this.#nanoseconds);
    return stamp;
  }
}

/** Whether timestamp `a` is later than `b`. */
export function isLater(a: Uint8Array, b: Uint8Array): boolean {
  for (let i = 0; i < TAI64N_BYTES; i++) if (a[i] !== b[i]) return a[i] > b[i];
  return false;
}
