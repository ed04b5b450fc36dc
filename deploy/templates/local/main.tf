# A workspace as a process on the machine that runs the provisioner: nothing to install, no container, no cloud.
# Whoever uses such a workspace acts as the provisioner's own user; for several people use containers or machines.

terraform {
  required_providers {
    coder = {
      source = "coder/coder"
    }
  }
}

variable "path" {
  description = "Folder that holds one folder per workspace, with its home directory and the agent's log."
  type        = string
  default     = "~/.local/share/workspace-mesh/workspaces"
}

data "coder_provisioner" "me" {}
data "coder_workspace" "me" {}

locals {
  folder = "${pathexpand(var.path)}/${data.coder_workspace.me.id}"
}

resource "coder_agent" "main" {
  os   = data.coder_provisioner.me.os
  arch = data.coder_provisioner.me.arch

  startup_script = <<-EOT
    echo "Hello from $(hostname), this is workspace ${data.coder_workspace.me.name}."
  EOT
}

# The folder lives as long as the workspace: made by the first start, removed by the delete.
resource "terraform_data" "folder" {
  input = {
    path         = local.folder
    workspace_id = data.coder_workspace.me.id
  }

  provisioner "local-exec" {
    command     = "sh ./folder.sh create"
    working_dir = path.module
    quiet       = true
    environment = {
      WORKSPACE_DIR = local.folder
      WORKSPACE_ID  = data.coder_workspace.me.id
    }
  }

  provisioner "local-exec" {
    when        = destroy
    command     = "sh ./folder.sh remove"
    working_dir = path.module
    quiet       = true
    environment = {
      WORKSPACE_DIR = self.input.path
      WORKSPACE_ID  = self.input.workspace_id
    }
  }

  lifecycle {
    precondition {
      condition     = data.coder_provisioner.me.os != "windows"
      error_message = "This template needs a provisioner on Linux or macOS."
    }
  }
}

# Stops whatever "agent" started. A resource of its own, because Terraform runs no destroy script for a resource
# whose creation failed half-way.
resource "terraform_data" "stopper" {
  count = data.coder_workspace.me.start_count

  input = {
    path         = terraform_data.folder.output.path
    workspace_id = terraform_data.folder.output.workspace_id
  }

  provisioner "local-exec" {
    when        = destroy
    command     = "sh ./agent.sh stop"
    working_dir = path.module
    quiet       = true
    environment = {
      WORKSPACE_DIR = self.input.path
      WORKSPACE_ID  = self.input.workspace_id
    }
  }
}

resource "terraform_data" "agent" {
  count = data.coder_workspace.me.start_count

  # A new token means a new agent.
  triggers_replace = [terraform_data.stopper[0].id, coder_agent.main.id, sha256(coder_agent.main.token)]

  provisioner "local-exec" {
    command     = "sh ./agent.sh start"
    working_dir = path.module
    # The command isn't printed and the environment never is, so the token doesn't reach the build log;
    # nonsensitive() lets the script's own output through.
    quiet = true
    environment = {
      WORKSPACE_DIR = terraform_data.folder.output.path
      WORKSPACE_ID  = terraform_data.folder.output.workspace_id
      INIT_SCRIPT   = coder_agent.main.init_script
      AGENT_TOKEN   = nonsensitive(coder_agent.main.token)
    }
  }
}

# What people see of the workspace: the agent, and where its files are.
resource "coder_metadata" "folder" {
  resource_id = terraform_data.folder.id

  item {
    key   = "path"
    value = local.folder
  }
}

resource "coder_metadata" "stopper" {
  count       = data.coder_workspace.me.start_count
  resource_id = terraform_data.stopper[0].id
  hide        = true
}
