/**
 * How long Node may try one address of a name before it gives it up for the next. Its own 250 ms are shorter than many a
 * round trip: where the other address family leads nowhere, a server that far away could not be reached at all.
 */
export const ADDRESS_ATTEMPT_MS = 1_000;
