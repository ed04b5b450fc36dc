// mocha's spec reporter, plus the closing line that continuous integration reads. Skipped tests are listed
// with their titles, since a test may skip itself only after printing why.
const { Spec } = require("mocha").reporters;

module.exports = class ClosingLine extends Spec {
  constructor(runner, options) {
    super(runner, options);
    runner.once("end", () => {
      const { passes = 0, failures = 0, pending = 0 } = this.stats;
      console.log(`${passes} passed, ${failures} failed, ${pending} skipped`);
    });
  }
};
