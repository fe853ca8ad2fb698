# shellcheck shell=bash
# The processes of the node and what they leave behind: started once, recorded by id, found again by their cgroup.

# Where this node's processes and pods are accounted: one tree with cgroup v2, one for each controller with v1.
cgroup_trees() {
  local tree
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo "/sys/fs/cgroup/$NETNS"
  else
    for tree in /sys/fs/cgroup/*/; do
      [ ! -f "$tree/cgroup.procs" ] || [ -L "${tree%/}" ] || echo "$tree$NETNS"
    done
  fi
}

cgroups() {
  local tree knob
  for tree in $(cgroup_trees); do
    mkdir -p "$tree/system"
    hand_down_controllers "$(dirname "$tree")" "$tree"
    # With cgroup v1 a new cpuset has no processor and no memory.
    if [ ! -f "$tree/cpuset.cpus" ] || [ ! -f "$tree/cgroup.clone_children" ]; then continue; fi
    for knob in cpuset.cpus cpuset.mems; do
      cat "$(dirname "$tree")/$knob" >"$tree/$knob"
      cat "$tree/$knob" >"$tree/system/$knob"
    done
  done
}

# hand_down_controllers DIR...: with cgroup v2 a group has the controllers that its parent hands down; kubelet wants all.
hand_down_controllers() {
  local dir controller controllers
  [ -f /sys/fs/cgroup/cgroup.controllers ] || return 0
  for dir in "$@"; do
    read -ra controllers <"$dir/cgroup.controllers"
    for controller in "${controllers[@]}"; do
      echo "+$controller" >"$dir/cgroup.subtree_control" 2>/dev/null || true
    done
  done
}

# The tree by which the processes are found again.
main_tree() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$NETNS"; else echo "/sys/fs/cgroup/pids/$NETNS"; fi
}

# running NAME: whether the process recorded under that name is there and still that program.
running() {
  local pid
  pid=$(cat "$RUN/pid/$1" 2>/dev/null) && [ "$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null)")" = "$1" ]
}

# start NAME COMMAND...: a process of the node inside its network, unless it runs already.
start() {
  local name=$1
  shift
  ! running "$name" || return 0
  [ ! -f "$RUN/pid/$name" ] || say "$name is gone; starting it again"
  (
    echo "$BASHPID" >"$(main_tree)/system/cgroup.procs"
    exec nsenter --net="/run/netns/$NETNS" setsid "$@" >>"$LOG/$name.log" 2>&1 </dev/null 9>&-
  ) &
  echo $! >"$RUN/pid/$name"
}

# Everything below the node's cgroup: pods, and the shims that outlive containerd.
members() {
  local tree
  for tree in $(cgroup_trees); do
    [ ! -d "$tree" ] || find "$tree" -name cgroup.procs -exec cat {} + 2>/dev/null
  done | sort -un
}

# Ends them all, and the recorded ones wherever they are.
end_all() {
  local name pid deadline=$((SECONDS + 10))
  for name in $PARTS; do
    ! running "$name" || kill -9 "$(cat "$RUN/pid/$name")" 2>/dev/null || true
  done
  while [ -n "$(members)" ] && [ "$SECONDS" -lt "$deadline" ]; do
    for pid in $(members); do kill -9 "$pid" 2>/dev/null || true; done
    sleep 0.1
  done
}

remove_cgroups() {
  local tree
  for tree in $(cgroup_trees); do
    [ ! -d "$tree" ] || find "$tree" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}

# unmount_below DIR...: whatever is mounted there, the deepest first.
unmount_below() {
  local dir mountpoint
  for dir in "$@"; do
    awk -v dir="$dir/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r | while read -r mountpoint; do
      umount -l "$mountpoint" 2>/dev/null || true
    done
  done
}

# kubelet sets these for the whole machine; the last node to go puts them back.
TUNABLES='vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes'

remember_tunables() {
  local name
  [ ! -f /run/entente-tunables ] || return 0
  for name in $TUNABLES; do
    echo "$name=$(sysctl -n "$name")"
  done >/run/entente-tunables
}

restore_tunables() {
  [ -f /run/entente-tunables ] && ! ls /run/entente-node*/owner >/dev/null 2>&1 || return 0
  sysctl -q -p /run/entente-tunables || true
  rm -f /run/entente-tunables
}
