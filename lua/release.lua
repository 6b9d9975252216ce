-- release: work that was fetched but not started goes back to the stream, uncounted.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   for each entry (1): entry
-- RETURN: how many went back
-- COST: per entry XPENDING + XRANGE + XACK + XDEL + XADD + HSET
-- WHY: a worker that stops or is paused must not make others wait for its lease to run out.
local STREAM, TASK, DELAYED = KEYS[1], KEYS[2], nil
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include now
--@include owned
--@include entry
--@include requeue
local entries = {}
for at = 3, #ARGV do entries[#entries + 1] = ARGV[at] end
local mine, released = owned(entries, CONSUMER), 0
for i = 1, #entries do
  local task = mine[entries[i]] and read(entries[i])
  if sound(task) then
    drop(entries[i])
    requeue(task, entries[i], 0, '', 0)
    released = released + 1
  end
end
return released
