/** Set by the bundler; running from source says so. */
export const VERSION = `v${process.env.CODER_BUILD_VERSION ?? "0.0.0-source"}`;
