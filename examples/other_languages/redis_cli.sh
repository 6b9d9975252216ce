#!/bin/sh
# Adds tasks and reads their results with redis-cli alone; see docs/format.md.
#
# It needs redis-cli (or another, named by REDIS_CLI), enqueue.lua beside it or in the folder SCRIPTS
# (redistq script enqueue > enqueue.lua), and a worker with
# handlers named double, add and broken.
set -eu
SCRIPTS=${SCRIPTS:-$(dirname "$0")}
QUEUE=${QUEUE:-tasks}
INBOX=shell-$$ # where the ends of our tasks are told; nobody else has this name

say() { printf '%s: %s\n' "$@"; } # unlike echo, it leaves backslashes alone
redis() { ${REDIS_CLI:-redis-cli} -u "${REDISTQ_URL:-redis://127.0.0.1:6379}" "$@"; }

# add ID NAME PAYLOAD [DUE]: adds a task once, however often this is called with the same id.
# DUE: empty for now, +5000 in five seconds, or ms since 1970.
add() {
  redis --eval "$SCRIPTS/enqueue.lua" "$QUEUE" "delayed:$QUEUE" "task:$QUEUE:" , \
    "wake:$QUEUE" "$1" "$2" "$3" "{\"inbox\":\"$INBOX\"}" "${4:-}" > "$SAID"
  # A number is the position of a task whose id was known already; words are an error's.
  if grep -qv '^[0-9]*$' "$SAID"; then cat "$SAID" >&2 && exit 1; fi
}

# wait_for ID: waits until a task has ended, and prints its state and what it came to.
wait_for() {
  last=0-0
  while state=$(redis HGET "task:$QUEUE:$1" state); do
    case $state in
      succeeded) say "$1 succeeded" "$(redis HGET "task:$QUEUE:$1" result)"; return ;;
      failed) say "$1 failed" "$(redis HGET "task:$QUEUE:$1" error)"; return ;;
      cancelled | expired) say "$1 $state" "$(redis HGET "task:$QUEUE:$1" reason)"; return ;;
    esac
    # Nothing is polled: this returns as soon as any of our tasks has ended, or after five seconds.
    redis XREAD BLOCK 5000 COUNT 1 STREAMS "inbox:$QUEUE:$INBOX" "$last" > "$SAID"
    next=$(grep -m 1 -x '[0-9]*-[0-9]*' "$SAID" || true)
    last=${next:-$last}
  done
}

SAID=$(mktemp)
trap 'rm -f "$SAID"' EXIT

# The usual way: by the script, which stores a task once and knows of times.
add "$INBOX-1" double 21
add "$INBOX-1" double 21 # the same id again: nothing is added
add "$INBOX-2" double '"later "' +300
add "$INBOX-3" broken '{"why":"no such customer"}'
add "$INBOX-4" add '{"args":[2],"kwargs":{"b":3}}' # a handler that takes arguments
wait_for "$INBOX-1"
wait_for "$INBOX-2"
wait_for "$INBOX-3"
wait_for "$INBOX-4"

# The least there is: one command, for now only, and nothing that knows an id again.
redis XADD "$QUEUE" '*' id "$INBOX-5" name double payload '[1,2]' attempt 1 recovered 0 \
  opts "{\"inbox\":\"$INBOX\"}" > "$SAID"
wait_for "$INBOX-5"
