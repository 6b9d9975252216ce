-- regate: tasks whose name has a rule or is paused, and that do not name its key, go back to wait under it.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 channel: where schedulers listen for an earlier due time
--   for each entry (1): entry
-- RETURN: for each entry 'regated', 'free' (its name has neither, or it names the key: it may run), or 'lost';
--   or a position (from 1) and an error's words when it is broken: it could not be written, nothing of it
--   was, and it is pending ('asked to end': that is wished of it, and it is the worker's to settle)
-- COST: XACK and XDEL of nothing, one EXISTS; per entry XPENDING + XRANGE + HMGET + HSET + ZADD + XACK +
--   XDEL, and what follows: see lib/follow_up.lua
-- WHY: a rule for a name holds for tasks that were added before it, or without its key. Only who has read
--   an entry knows its name without a search, so the workers hand these back, uncounted. From then
--   on the key is among the options of the task, and it is let in like all others: by way of the delayed
--   set, where it is due at once, in the order of the call. What it held of other keys it gives back, but
--   for what is strictly in order.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, CONSUMER, HISTORY_MAX, TTL = ARGV[1], ARGV[2], ARGV[3], 86400000
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include attempt
--@include postpone
--@include wake
--@include look
--@include history
--@include options
--@include later
--@include notify
--@include lanes
--@include batch
--@include tally
--@include room
--@include slots
--@include together
--@include turns
--@include gate
--@include unstarted
--@include more
--@include follow_up
--@include wish
-- Whether a rule or a pause holds for a key.
local function holds(key)
  local now = standing({ key = key })
  return now.ruled or now.paused
end
-- The options with one more key, as text: cjson would change numbers.
local function with_key(opts, key)
  local quoted = string.sub(cjson.encode('k1 ' .. key), 2, -2)
  local at = option(opts, 'gate') ~= '' and string.find(opts, '"gate":"', 1, true)
  if at then return string.sub(opts, 1, at + 7) .. quoted .. '\\n' .. string.sub(opts, at + 8) end
  local rest = string.match(opts, '^%s*{(.*)$') or '}'
  return '{"gate":"' .. quoted .. '"' .. (string.find(rest, '^%s*}') and '' or ',') .. rest
end
local earliest = 0
local function back(entry, task, key, delay)
  task.opts = with_key(task.opts, key)
  local due = postpone(entry, task, entry .. ' ' .. CONSUMER, delay, 'delay', NOW)
  if earliest == 0 or due < earliest then earliest = due end
end
may_drop()
local answer = {}
for at = 5, #ARGV do
  local entry = ARGV[at]
  local task = owned({ entry }, CONSUMER)[entry] and read(entry)
  if not sound(task) then
    answer[#answer + 1] = 'lost'
  else
    local key, gate = 'name:' .. task.name, option(task.opts, 'gate')
    if term_of(gate, key) or not holds(key) then
      answer[#answer + 1] = 'free'
    else
      local fault = wish(entry, CONSUMER) and 'asked to end' or whole(back, entry, task, key, at - 5)
      if fault then
        answer[#answer + 1] = { at - 4, fault }
      else
        drop(entry)
        pcall(give_back, task.id, terms(gate).keys, true, true)
        answer[#answer + 1] = 'regated'
      end
    end
  end
end
follow_up()
wake(earliest, ARGV[4])
return answer
