-- release: work that was fetched but not started goes back to the stream, uncounted.
-- KEYS:
--   1 stream
--   2 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 drained_only: 1 gives back only when the stream has nothing unread
--   for each entry (1): entry
-- RETURN: how many went back
-- COST: per entry XPENDING + XRANGE + XACK + XDEL + XADD + HSET
-- WHY: a worker that stops or is paused must not make others wait for its lease to run out. One
--   that is merely stuck behind long tasks helps others only when they have nothing else to read;
--   otherwise its tasks would lose their place in the queue for nothing.
local STREAM, TASK, DELAYED = KEYS[1], KEYS[2], nil
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include now
--@include owned
--@include entry
--@include requeue
local entries = {}
for at = 4, #ARGV do entries[#entries + 1] = ARGV[at] end
if ARGV[3] == '1' then
  local groups, last = redis.pcall('XINFO', 'GROUPS', STREAM), '0-0'
  if groups.err then return 0 end
  for i = 1, #groups do
    local row = {}
    for j = 1, #groups[i], 2 do row[groups[i][j]] = groups[i][j + 1] end
    if row.name == GROUP then last = row['last-delivered-id'] end
  end
  if #redis.call('XRANGE', STREAM, '(' .. last, '+', 'COUNT', 1) > 0 then return 0 end
end
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
