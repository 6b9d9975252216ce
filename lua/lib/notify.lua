-- notify(inbox, id, state, body, whole_body): one settled task into a client's inbox. A small body rides
-- along and saves the client a round trip (`whole_body`: a large one too, for it is kept nowhere
-- else); the inbox of a client that never comes back expires. What fails is passed over: the task
-- has ended, and a client that was not notified asks how it stands.
local function notify(inbox, id, state, body, whole_body)
  local key = INBOX .. inbox
  if whole_body or #body <= 16384 then
    redis.pcall('XADD', key, '*', 'id', id, 'state', state, 'body', body)
  else
    redis.pcall('XADD', key, '*', 'id', id, 'state', state)
  end
  redis.pcall('PEXPIRE', key, 3600000)
end
-- anyone_waits(): whether there is any task that an inbox waits for.
local function anyone_waits()
  if waited == nil then waited = redis.pcall('EXISTS', WAITERS) ~= 0 end
  return waited
end
-- keep_for_dependants(id, state, body, unkept, kept): the record of a task with dependants is there until they have
-- ended, its result too; they are followed up. `kept`: it was written so.
local function keep_for_dependants(id, state, body, unkept, kept)
  local record, lane = TASK .. id, string.match(STREAM, '![a-z]+$')
  if not kept and redis.pcall('HEXISTS', record, 'readers') == 1 then
    local left = redis.pcall('PTTL', record)
    if type(left) == 'table' then left = 60000 end -- it may not be asked
    if unkept and state == 'succeeded' then redis.pcall('HSET', record, 'result', body) end
    redis.pcall('HSET', record, 'keep_ms', left)
    redis.pcall('PERSIST', record)
  end
  later('after', 't:' .. (lane and lane .. '\n' .. id or id), state)
end
-- tell(id, state, body, inbox, unkept, waiting, kept): the inboxes that wait for a task, and its own, hear of its end;
-- its dependants are followed up.
local function tell(id, state, body, inbox, unkept, waiting, kept)
  if waiting == '>' then return keep_for_dependants(id, state, body, unkept, kept) end
  for address in string.gmatch(waiting, '[^\n]+') do
    if address == '>' then
      keep_for_dependants(id, state, body, unkept, kept)
    elseif address ~= inbox then
      notify(address, id, state, body, unkept)
    end
  end
end
-- notify_all(id, state, body, inbox, unkept): notify the task's own inbox and all others that wait for
-- it of its end.
local function notify_all(id, state, body, inbox, unkept)
  if inbox ~= '' then notify(inbox, id, state, body, unkept) end
  if anyone_waits() then
    local waiting = redis.pcall('HGET', WAITERS, id)
    if type(waiting) == 'string' then
      redis.pcall('HDEL', WAITERS, id)
      tell(id, state, body, inbox, unkept, waiting, false)
    elseif type(waiting) == 'table' then -- who waits cannot be read: dependants may
      keep_for_dependants(id, state, body, unkept, false)
    end
  end
end
