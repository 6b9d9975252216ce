-- send_event: an event reaches the tasks that wait for it, and is kept for those that will.
-- KEYS:
--   1 stream
-- ARGV:
--   1 name
--   2 mark: a word that no other event has; sent again with it, it is the same one
--   3 body
--   4 keep: how long it is kept, ms
--   5 task: the id of the task that it is for; '' all
--   6 limit: most tasks that this call lets go on; the others go on by a timer
-- RETURN: how many tasks go on by it now; of one task how it stands ('' all): 'unknown', how it ended, or 'full': it
--   has 1,000 messages that it has not taken
-- COST: GET, EXISTS, RENAME + SET, ZRANGE, and per task that goes on HMGET, HGET + GET, HGET + HSET, ZADD, HDEL + ZREM twice and PUBLISH;
--   to one task HMGET + HSET, then the same
-- WHY: what is for all is one value a name, the latest, and found by those that begin to wait later. Those that wait
--   when it is sent are put apart: one that has taken it and waits again must not be met on the way. What is for
--   one task is kept in its record, in order, as long as the task is there. It is in the record of each task that goes
--   on before that one is due: the next attempt finds it there, whatever has been sent since.
local STREAM, DELAYED, TASK = KEYS[1], nil, nil
local HISTORY, COUNTERS, DEAD, WAITERS, BATCH, SETTLED = nil
local INBOX, waited
--@include now
local NOW = now_ms()
--@include look
--@include lanes
--@include step
--@include event
--@include reach
local name, mark, body, task = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
if task == '' then
  local key, waiting = 'event:' .. BASE .. ':' .. name, 'expecting:' .. BASE .. ':' .. name
  local going = waiting .. '\n' .. mark
  if string.sub(look('', 'GET', key) or '', 1, #mark + 1) ~= mark .. '\n' then
    if redis.call('EXISTS', waiting) == 1 then redis.call('RENAME', waiting, going) end
    redis.call('SET', key, mark .. '\n' .. body, 'PX', ARGV[4])
  end
  local ok, count = pcall(reach_all, name, going, tonumber(ARGV[6]))
  if ok then return { count, '' } end
  timer(NOW + 5000, cjson.encode({ 'event', name, going }))
  return error(count, 0)
end
-- Where that task is: in this lane, else in another.
for _, lane in ipairs({ HOME, '', '!high', '!low' }) do
  go_to(lane)
  local record, of_name = TASK .. task, 'events:' .. name
  local has = redis.call('HMGET', record, 'state', 'entry', 'events', of_name)
  if has[1] and has[1] ~= 'delayed' and has[1] ~= 'waiting' then return { 0, has[1] } end
  if has[1] or has[2] then
    local sent, before = string.match(has[4] or '0 ', '^(%d+) (.*)$')
    if before ~= mark then
      if tonumber(has[3] or 0) >= 1000 then return { 0, 'full' } end
      redis.call('HSET', record, string.format('event:%d:%s', sent + 1, name), mark .. '\n' .. body,
        of_name, int(sent + 1) .. ' ' .. mark, 'events', int(tonumber(has[3] or 0) + 1))
    end
    return { reach(ref_of(task), name) and 1 or 0, has[1] or 'ready' }
  end
end
return { 0, 'unknown' }
