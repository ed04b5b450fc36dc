// Why a test does not run here, said the same way everywhere.

/** For tests that look at processes from outside. Skips the test or the suite where there is no /proc. */
export function needsProc(context: Mocha.Context): void {
  if (process.platform === "linux") return;
  console.log("      skipped: it reads /proc, which only Linux has");
  context.skip();
}
