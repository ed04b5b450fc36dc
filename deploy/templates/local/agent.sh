#!/bin/sh
# Starts a workspace's agent as a process of its own, or stops it with everything it started.
# Works with the tools of any Linux or macOS: dash, bash or busybox, with or without ps and setsid.
set -eu
umask 077
dir=${WORKSPACE_DIR:?}
id=${WORKSPACE_ID:?}
pid_file=$dir/agent.pid
log=$dir/agent.log
# Every process of the workspace has this in its environment, which is how they are found on Linux.
marker=CODER_LOCAL_WORKSPACE=$id

# What a process number alone can't tell: numbers are used again. Fails when the process is gone or only waits to
# be collected.
identity() {
  if [ -r /proc/self/stat ]; then
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # After the name, which may hold anything: field 3, the state, to field 22, the start in ticks since boot.
    set -- ${line##*) }
    [ "$1" != Z ] || return 1
    shift 19
    printf '%s %s\n' "$(cat /proc/sys/kernel/random/boot_id)" "$1"
  else
    case $(ps -o stat= -p "$1" 2>/dev/null) in '' | Z*) return 1 ;; esac
    ps -o lstart= -p "$1"
  fi
}

is_ours() {
  [ -n "$pid" ] && [ "$(identity "$pid")" = "$started" ]
}

# The processes with our marker, by number; nothing where /proc doesn't show environments.
marked() {
  [ -r /proc/self/environ ] || return 0
  grep -lF "$marker" /proc/[0-9]*/environ 2>/dev/null | sed 's/[^0-9]//g' | while read -r candidate; do
    if identity "$candidate" >/dev/null; then echo "$candidate"; fi
  done
}

# wait_for TENTHS COMMAND...: until COMMAND fails, at most TENTHS of a second
wait_for() {
  tenths=$1
  shift
  while "$@"; do
    [ "$tenths" -gt 0 ] || return 1
    tenths=$((tenths - 1))
    sleep 0.1
  done
}

# Not the agent yet, but what is to become it: this script, setsid, env or the init script, or one of them in the middle
# of an exec, when there is no command line. Where /proc doesn't show it, nothing is.
starting() {
  is_ours && [ -r /proc/self/cmdline ] || return 1
  line=$(tr '\000' ' ' <"/proc/$pid/cmdline" 2>/dev/null) || return 1
  case $line in '' | *"$dir/init.sh"*) return 0 ;; esac
  [ "$line" = "$(tr '\000' ' ' </proc/$$/cmdline)" ]
}

some_marked() {
  [ -n "$(marked)" ]
}

# Whether some process is in the middle of an exec: it has a program already, and shows neither arguments nor
# environment yet.
in_exec() {
  [ -r /proc/self/environ ] || return 1
  grep -L . /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do
    # Kernel threads have no program.
    if [ -O "$file" ] && [ -e "${file%/cmdline}/exe" ]; then echo "$file"; fi
  done | grep -q .
}

# The same as "marked", and more looks while one of them could be hidden from it.
left_over() {
  found=$(marked)
  for look in 1 2 3 4 5 6 7 8 9 10; do
    if [ -n "$found" ] || { [ "$look" -gt 1 ] && ! in_exec; }; then break; fi
    sleep 0.1
    found=$(marked)
  done
  echo "$found"
}

stop_all() {
  pid=
  started=
  if [ -r "$pid_file" ]; then
    { read -r pid && read -r started; } <"$pid_file" || pid=
  fi
  if is_ours; then
    # The agent runs shutdown scripts and ends its sessions.
    kill -TERM "$pid" 2>/dev/null || :
    if ! wait_for 200 is_ours; then
      echo "the agent did not end within 20 s and is killed"
      kill -KILL "-$pid" 2>/dev/null || :
      kill -KILL "$pid" 2>/dev/null || :
      wait_for 50 is_ours || :
    fi
  fi
  # What outlived the agent: background jobs, or all of it when the agent had crashed.
  for signal in TERM KILL; do
    left=$(left_over)
    [ -n "$left" ] || break
    kill -"$signal" $left 2>/dev/null || :
    wait_for 30 some_marked || :
  done
  if some_marked; then
    echo "processes of the workspace could not be ended:" $(marked) >&2
    exit 1
  fi
  rm -f "$pid_file"
}

start() {
  stop_all
  if [ -e "$log" ]; then mv -f "$log" "$log.1"; fi
  printf '%s\n' "${INIT_SCRIPT:?}" >"$dir/init.sh"

  # Terraform's environment carries credentials of the provisioner, and Go settings that would slow down the
  # user's programs: only what any login has goes on to the workspace.
  set --
  for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
    HOME | CODER_AGENT_TOKEN | CODER_AGENT_LOG_DIR | CODER_AGENT_SCRIPT_DATA_DIR | CODER_LOCAL_WORKSPACE) ;; # set below
    PATH | USER | LOGNAME | SHELL | LANG | LANGUAGE | LC_* | TZ | TMPDIR) ;;
    *_proxy | *_PROXY | SSL_CERT_FILE | SSL_CERT_DIR | CURL_CA_BUNDLE | NODE_EXTRA_CA_CERTS) ;;
    *) set -- "$@" -u "$name" ;;
    esac
  done
  # The token goes by the environment: a command line can be read by every user of the machine.
  if command -v setsid >/dev/null 2>&1; then
    set -- setsid env "$@"
  elif command -v perl >/dev/null 2>&1; then
    set -- perl -MPOSIX -e 'setsid; exec @ARGV or die' env "$@"
  else
    set -- env "$@"
  fi
  cd "$dir/home"
  token=${AGENT_TOKEN:?}
  (
    export CODER_AGENT_TOKEN="$token" "$marker" HOME="$dir/home"
    # Logs and data of scripts stay in the workspace's folder too, and go with it.
    export CODER_AGENT_LOG_DIR="$dir/logs" CODER_AGENT_SCRIPT_DATA_DIR="$dir/scripts"
    trap '' HUP
    exec "$@" /bin/sh "$dir/init.sh"
  ) >>"$log" 2>&1 </dev/null &
  pid=$!
  started=$(identity "$pid") || started=
  printf '%s\n%s\n' "$pid" "$started" >"$pid_file.new"
  mv -f "$pid_file.new" "$pid_file"

  # One that can't even start is a failed build, not an agent that never connects. A busy machine may need a while to
  # get there; a download takes longer than is waited for here.
  wait_for 30 starting || :
  # Looks rather than a time: each starts some processes, as the agent does, so that they take longer where it does.
  for look in 1 2 3 4 5 6 7 8 9 10; do
    is_ours || break
    sleep 0.02
  done
  if ! is_ours; then
    echo "the agent ended at once; its log says:" >&2
    tail -n 20 "$log" >&2
    rm -f "$pid_file"
    exit 1
  fi
  echo "agent started, its log is $log"
}

case $1 in
start) start ;;
stop) [ ! -d "$dir" ] || stop_all ;;
esac
