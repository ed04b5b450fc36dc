#!/bin/sh
# Makes or removes a workspace's folder. Removes only what it made: the folder names its workspace.
set -eu
umask 077
dir=${WORKSPACE_DIR:?}
id=${WORKSPACE_ID:?}
mark=$dir/.workspace-id

case $1 in
create)
  if [ -e "$dir" ] && [ "$(cat "$mark" 2>/dev/null)" != "$id" ]; then
    if [ -n "$(ls -A "$dir")" ]; then
      echo "$dir exists and isn't this workspace's; move it away" >&2
      exit 1
    fi
  fi
  mkdir -p "$dir/home"
  chmod 700 "$dir" "$dir/home"
  printf '%s\n' "$id" >"$mark"
  ;;
remove)
  [ -e "$dir" ] || exit 0
  if [ "$(cat "$mark" 2>/dev/null)" != "$id" ]; then
    echo "$dir isn't marked as this workspace's folder; it is left as it is"
    exit 0
  fi
  # Tools leave read-only folders in a home (module caches do).
  rm -rf "$dir" 2>/dev/null || { chmod -R u+rwX "$dir" && rm -rf "$dir"; }
  ;;
esac
