-- release: work that was fetched but not started goes back to the stream, uncounted.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 drained_only: 1 gives back only when the stream has nothing unread
--   for each entry (1): entry
-- RETURN: how many of them are off this consumer's hands: they went back, now or by the same call sent
--   before, or were taken away; 0 when the stream is not drained
-- COST: XACK and XDEL of nothing, one EXISTS; per entry XPENDING + XRANGE + XADD + HSET + XACK + XDEL
-- WHY: a worker that stops or is paused must not make others wait for its lease to run out. One
--   that is merely stuck behind long tasks helps others only when they have nothing else to read;
--   otherwise its tasks would lose their place in the queue for nothing. What cannot be written
--   stays pending, and is not counted; so does what somebody wishes to end (see cancel).
local STREAM, TASK = KEYS[1], KEYS[2]
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include attempt
--@include requeue
--@include look
--@include unread
--@include wish
local entries, held = {}, 0
for at = 4, #ARGV do entries[#entries + 1] = ARGV[at] end
local mine = owned(entries, CONSUMER)
for i = 1, #entries do if mine[entries[i]] then held = held + 1 end end
if ARGV[3] == '1' and held > 0 and oldest_unread() then return 0 end
may_drop()
local off = 0
for i = 1, #entries do
  local entry = entries[i]
  local task = mine[entry] and read(entry)
  if not task or sound(task) and not wish(entry, CONSUMER) then
    if not task or not whole(requeue, entry, task) then
      if mine[entry] then drop(entry) end
      mine[entry] = nil
      off = off + 1
    end
  end -- else it stays pending: it is no task, or is to end
end
return off
