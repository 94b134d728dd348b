# Runs on the device for as long as a connection lasts, its standard input held open from the other end. However that end
# comes (we close, Ctrl-C, a killed client, a lost link), the guard ends what was started, puts the settings back and removes
# the folder. Plain POSIX: dash, busybox ash, and Android's mksh with toybox run it.
#
# Arguments: mark of our lines, folder for folders ('' is the system's), name of the session, 1 to have the device alone,
# seconds without a heartbeat after which the link is dead (0: its end is always noticed), who we are, file of the boot's id;
# then four words a setting: its key, and shell text that prints its state, that changes it, that puts "$state" back.
# Says, each line behind the mark: fail WHY | held WHO | unlocked | changed KEY | left KEY WHY | ready BOOT PID FOLDER, and at the end
# restored KEY | stuck KEY WHY | done.
mark=$1 base=${2:-${TMPDIR:-/tmp}} token=$3 exclusive=$4 patience=$5 holder=$6 boot=$7
shift 7
umask 077
trap '' PIPE
trap : HUP INT TERM
home=$base/natdeploy-$(id -u)
session=$home/$token
words=$session/words

say() { printf '%s %s\n' "$mark" "$*"; }
fail() {
  say "fail $*"
  rm -rf "$session"
  exit 1
}

# Writes a value to a file, as root where only root may.
put() {
  if [ -w "$1" ]; then printf '%s\n' "$2" >"$1"; else printf '%s\n' "$2" | sudo -n tee "$1" >/dev/null; fi
}

# A state that an earlier guard saved and did not live to put back is the one to return to, so it is not asked again.
change() {
  while [ $# -ge 4 ]; do
    if [ ! -e "$1.state" ]; then
      state=$(eval "$2" 2>"$words" </dev/null 9<&-) && printf '%s\n' "$state" >"$1.state" || {
        rm -f "$1.state"
        say "left $1 $(tail -n 1 "$words")"
        shift 4
        continue
      }
    fi
    if eval "$3" >"$words" 2>&1 </dev/null 9<&-; then
      say "changed $1"
    else
      say "left $1 $(tail -n 1 "$words")"
      put_back "$1" "$2" "$3" "$4" >/dev/null
    fi
    shift 4
  done
}

# In reverse order. A state that cannot be put back stays saved for the next guard.
put_back() {
  [ $# -ge 4 ] || return 0
  (shift 4 && put_back "$@")
  [ -e "$1.state" ] || return 0
  state=$(cat "$1.state")
  if eval "$4" >"$words" 2>&1 </dev/null 9<&-; then
    rm -f "$1.state"
    say "restored $1"
  else
    say "stuck $1 $(tail -n 1 "$words")"
  fi
}

# Ends the programs of a session. Its folder has moved away first, so none can start after the list is read. Of a session
# whose guard is dead only what still runs in its folder is ended: another process may have got the number since.
end() {
  mv "$1" "$1.end" || return 0
  for pid in $(ls "$1.end/pids"); do
    [ "$2" = ours ] || [ "/proc/$pid/cwd" -ef "$1.end/files" ] || continue
    kill -9 "-$pid" || kill -9 "$pid"
  done 2>/dev/null
}

printf '\n'
for _ in 1 2 3; do # another session may just remove the empty folder
  mkdir -m 755 "$home" 2>/dev/null
  [ -d "$home" ] && [ ! -h "$home" ] && [ -O "$home" ] || continue
  error=$(mkdir -m 700 "$session" "$session/files" "$session/pids" 2>&1) && break
done
[ -d "$session/pids" ] || fail "${error:-$(mkdir "$home" 2>&1)}"

if [ "$exclusive" = 1 ]; then
  lock=$base/natdeploy.lock
  [ -e "$lock" ] || (umask 0 && : >"$lock")
  [ -r "$lock" ] || fail "$lock cannot be read"
  exec 9<"$lock"
  # The kernel lets go of the lock with the guard, however it ends. Android has flock from 7 on.
  for attempt in 1 2 3; do
    flock -n 8 8<&9 2>/dev/null
    case $? in
      0) break ;;
      1) # held, or just being left
        [ "$attempt" = 3 ] || { sleep 1; continue; }
        say "held $(cat "$(ls -t "$base"/natdeploy-*/holder | head -n 1)")"
        rm -rf "$session"
        rmdir "$home"
        exit 1
        ;;
      *) say unlocked; break ;;
    esac
  done 2>/dev/null
  (umask 022 && printf '%s since %s\n' "$holder" "$(date '+%Y-%m-%d %H:%M:%S')" >"$home/holder")
  for old in "$home"/*/pids; do
    old=${old%/pids}
    [ "$old" = "$session" ] || { end "$old" stale; rm -rf "$old.end"; }
  done
fi
if [ $# -gt 0 ]; then
  mkdir -p "$home/saved" && cd "$home/saved" || fail "$home/saved cannot be made"
  change "$@"
fi

exec 3<&0
while read -r _; do : >"$session/beat"; done <&3 9<&- >/dev/null 2>&1 &
reader=$!
dog=
if [ "$patience" -gt 0 ]; then
  (
    trap 'kill "$nap"; exit' TERM
    while sleep "$patience" & nap=$!; wait "$nap"; do
      rm "$session/beat" || { kill -9 "$reader"; exit; }
    done
  ) </dev/null 3<&- 9<&- >/dev/null 2>&1 &
  dog=$!
fi
say "ready $(cat "$boot" 2>/dev/null || echo -) $$ $session"
wait "$reader"

{ [ -z "$dog" ] || kill "$dog"; kill -9 "$reader"; } 2>/dev/null
end "$session" ours
words=$session.end/words
put_back "$@"
cd /
if [ $# -gt 0 ] && ! ls "$home/saved" | grep -q '\.state$'; then rm -rf "$home/saved"; fi
for _ in 1 2 3; do # what was killed may still be writing
  rm -rf "$session.end" 2>/dev/null && break
  sleep 1
done
[ "$exclusive" = 0 ] || rm -f "$home/holder"
rmdir "$home" 2>/dev/null
say done
