/**
 * A template without an agent's process: each start writes the agent's token to `tokenFile`, for tests that are the
 * agent themselves. `more`: further resources, in HCL.
 */
export const tokenTemplate = (tokenFile: string, more = ""): string => `terraform {
  required_providers {
    coder = { source = "coder/coder" }
  }
}
data "coder_workspace" "me" {}
data "coder_provisioner" "me" {}
resource "coder_agent" "main" {
  os   = data.coder_provisioner.me.os
  arch = data.coder_provisioner.me.arch
}
resource "terraform_data" "token" {
  count = data.coder_workspace.me.start_count
  provisioner "local-exec" {
    command = "umask 077; printf %s \\"$TOKEN\\" > '${tokenFile}'"
    quiet   = true
    environment = { TOKEN = nonsensitive(coder_agent.main.token) }
  }
}
${more}`;
