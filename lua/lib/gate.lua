-- The server's time; what a level of priority is worth in line; how late a timer may be without losing tokens,
-- and how soon one may be.
local NOW = now_ms()
local AGEING_US, SLACK_MS, TICK_MS = 6000000, 100, 5
local read_terms = {}
-- terms(gate): what the text of a gated task says: its keys, what is strictly in order first, each with a
-- weight, and its priority, unique key and deadline.
local function terms(gate)
  if read_terms[gate] then return read_terms[gate] end
  local found = { keys = {}, priority = 0 }
  read_terms[gate] = found
  for kind, rest in string.gmatch(gate, '(%a)([^\n]*)') do
    if kind == 'k' then
      local weight, key = string.match(rest, '^(%d+) (.*)$')
      found.keys[#found.keys + 1] = { key = key, weight = tonumber(weight) }
    elseif kind == 'o' then
      table.insert(found.keys, 1, { key = string.sub(rest, 2), weight = 1, order = true })
    elseif kind == 'g' then
      local share, group = string.match(rest, '^(%d+) (.*)$')
      found.keys[#found.keys + 1] = { key = 'group:' .. group, weight = 1 }
      found.keys[#found.keys + 1] = { key = 'door', weight = 1, group = group, share = tonumber(share) }
    elseif kind == 'p' then
      found.priority = tonumber(rest)
    elseif kind == 'u' then
      found.scope, found.unique = string.match(rest, '^(%S+) (.*)$')
    elseif kind == 'x' then
      found.expires = tonumber(rest)
    end
  end
  return found
end
local parsed = { [''] = {} }
-- rule_of(text): a rule as a table: at_most, rate, per, burst, excess, weight, on_failure.
local function rule_of(text)
  if not parsed[text] then
    local rule = {}
    for name, value in string.gmatch(text, '([%a_]+)=(%S+)') do rule[name] = tonumber(value) or value end
    parsed[text] = rule
  end
  return parsed[text]
end
-- width(): how many tasks of groups may be in the stream: a rule for `door`, else twice what the workers
-- of this lane run at a time, counted anew each second.
local function width()
  local counted, at = string.match(redis.call('HGET', LIMITS, 'd') or '', '^(%d+) (%d+)$')
  if at and NOW - tonumber(at) < 1000 and tonumber(at) <= NOW then return tonumber(counted) end
  local slots, queue = 0, BASE .. HERE
  local alive = redis.call('ZRANGEBYSCORE', 'workers:' .. queue, int(NOW), '+inf', 'LIMIT', 0, 1000)
  for i = 1, #alive do
    slots = slots + (tonumber(look(0, 'HGET', 'worker:' .. queue .. ':' .. alive[i], 'slots') or 0) or 0)
  end
  slots = math.max(2 * slots, 2)
  redis.call('HSET', LIMITS, 'd', int(slots) .. ' ' .. int(NOW))
  return slots
end
-- How keys stand, by key: nothing else writes while this script runs. What goes wrong clears it.
local stands = {}
-- standing(term): how a key stands: its rule, slots in use, tasks that wait, next token, whether paused.
local function standing(term)
  local key = term.key
  if stands[key] then return stands[key] end
  local prefix = string.match(key, '^[^:]*:')
  local pattern = prefix and prefix .. '*' or key
  local has = redis.call('HMGET', LIMITS, 'r' .. key, 'r' .. pattern, 's' .. key, 'w' .. key, 't' .. key,
    'p' .. key, 'p' .. pattern)
  local rule = rule_of(has[1] or has[2] or '')
  local now = { rule = rule, used = tonumber(has[3] or 0), waiting = tonumber(has[4] or 0),
    tat = tonumber(has[5] or 0), paused = has[6] or has[7] }
  stands[key] = now
  return now
end
-- most_of(term, now): how many slots a key has, in which it stands so; nil for as many as are wanted.
local function most_of(term, now)
  return term.order and 1 or now.rule.at_most or (term.group and width())
end
-- list_of(term): the key of the line under a key; for the door, of one group's.
local function list_of(term)
  return WAITING .. ':' .. term.key .. (term.group and '\n' .. term.group or '')
end
-- in_front(term, task, priority): whether a task would be the first in the line under a key: one that comes from
-- another line, or is more urgent, may have a place before all that wait there.
local function in_front(term, task, priority)
  if standing(term).waiting <= 0 or (term.order and not task.place) then return false end
  local first = redis.call('ZRANGE', list_of(term), 0, 0, 'WITHSCORES')[2]
  local place = task.place or NOW * 1000
  return not first or (term.order and place or place - priority * AGEING_US) < tonumber(first)
end
-- obstacle(term, first): why there is no room for a task under a key, and when there will be, if that
-- is known; nil where there is. `first`: it is the first in line there.
local function obstacle(term, first)
  local now = standing(term)
  if now.paused then return 'paused' end
  local most = most_of(term, now)
  local reason = term.order and 'order' or term.group and 'share' or most and 'limit' or 'rate'
  if not first and now.waiting > 0 then return reason end
  -- One that is heavier than all there is runs alone.
  if most and now.used > 0 and now.used + term.weight > most then return reason end
  local each = now.rule.rate and now.rule.per / now.rule.rate or 0
  local free_at = now.tat - ((now.rule.burst or 1) - 1) * each
  if free_at > NOW then return 'rate', free_at end
end
-- take(term, late): a slot and, where there is a rate, a token. Its time has come already for what waited
-- for it: a timer that is late, by a little, costs no token.
local function take(term, late)
  local now = standing(term)
  redis.call('HINCRBY', LIMITS, 's' .. term.key, term.weight)
  now.used = now.used + term.weight
  undoing('HINCRBY', LIMITS, 's' .. term.key, -term.weight)
  local rule, tat = now.rule, now.tat
  if rule.rate then
    now.tat = math.max(tat, late and NOW - SLACK_MS or NOW) + term.weight * rule.per / rule.rate
    redis.call('HSET', LIMITS, 't' .. term.key, string.format('%.3f', now.tat))
    undoing('HSET', LIMITS, 't' .. term.key, tat)
  end
end
-- token(term, n): n tokens more (or fewer) are taken than tasks were let in: a retry at once, a snooze.
local function token(term, n)
  local now = standing(term)
  local rule = now.rule
  if not rule.rate then return end
  now.tat = math.max(now.tat, NOW) + n * term.weight * rule.per / rule.rate
  redis.call('HSET', LIMITS, 't' .. term.key, string.format('%.3f', now.tat))
end
local last_place
-- new_place(): the next number in line: of microseconds, but never one that was given before.
local function new_place()
  last_place = math.max((last_place or tonumber(redis.call('HGET', LIMITS, 'n') or 0)) + 1, NOW * 1000)
  redis.call('HSET', LIMITS, 'n', int(last_place))
  return last_place
end
-- join_line(ref, term, place, priority): a task stands in the line under a key. Noted for undoing.
local function join_line(ref, term, place, priority)
  local line = list_of(term)
  redis.call('ZADD', line, int(term.order and place or place - priority * AGEING_US), ref)
  undoing('ZREM', line, ref)
  redis.call('HINCRBY', LIMITS, 'w' .. term.key, 1)
  standing(term).waiting = standing(term).waiting + 1
  undoing('HINCRBY', LIMITS, 'w' .. term.key, -1)
  if term.group then
    redis.call('ZADD', SHARES, 'NX', redis.call('HGET', LIMITS, 'v') or 0, term.group)
  end
end
-- leave_line(ref, under, gate): a task stands in the line under a key no more.
local function leave_line(ref, under, gate)
  local keys = terms(gate).keys
  for i = 1, #keys do
    local term = keys[i]
    if term.key == under then
      local line = list_of(term)
      if redis.call('ZREM', line, ref) == 1 then
        local now = standing(term)
        now.waiting = now.waiting - 1
        if now.waiting > 0 then
          redis.call('HINCRBY', LIMITS, 'w' .. under, -1)
        else
          redis.call('HDEL', LIMITS, 'w' .. under)
        end
      end
      if term.group and redis.call('EXISTS', line) == 0 then redis.call('ZREM', SHARES, term.group) end
      return
    end
  end
end
local AWAY = { 'state', 'reason', 'under', 'since_ms', 'place', 'parents', 'due', 'name', 'payload', 'attempt',
  'recovered', 'opts' }
-- let_in(id, task): a task whose keys are taken is in the stream from now on. Noted for undoing, but for
-- what its record said of its waiting, which goes last.
local function let_in(id, task)
  local entry = add(id, task.name, task.payload, task.attempt, task.recovered, task.opts)
  undoing('XDEL', STREAM, entry)
  redis.call('HSET', TASK .. id, 'entry', entry, 'gate', task.gate, 'held', '1')
  if task.held then undoing('HSET', TASK .. id, 'held', task.held) else undoing('HDEL', TASK .. id, 'held') end
  undoing('HSET', TASK .. id, 'entry', '')
  redis.call('HDEL', TASK .. id, unpack(AWAY))
end
-- wait(id, task, reason, under): a task is in no stream, but accepted: its record says what it waits for.
-- Noted for undoing where it did not wait before.
local function wait(id, task, reason, under)
  local record, ref = TASK .. id, ref_of(id)
  task.place = task.place or new_place()
  task.since_ms = task.since_ms or int(NOW)
  if not task.waits then
    undoing('HDEL', record, 'under', 'since_ms', 'place', 'gate', 'parents', 'due')
    redis.call('HSET', record, 'entry', '', 'state', 'waiting', 'reason', reason, 'under', under, 'since_ms',
      task.since_ms, 'place', int(task.place), 'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
      'recovered', task.recovered, 'opts', task.opts, 'gate', task.gate)
    redis.call('ZADD', WAITING, task.since_ms, ref)
    undoing('ZREM', WAITING, ref)
  else
    redis.call('HSET', record, 'reason', reason, 'under', under)
  end
end
-- hold_turn(id, term, late): a task whose turn it is in a strict order waits for another key: it keeps its turn,
-- so nobody overtakes it. No two can wait for each other so: a task has one order, and all other keys are
-- held by what is in the stream.
local function hold_turn(id, term, late)
  take(term, late)
  redis.call('HSET', TASK .. id, 'held', 'o')
  undoing('HDEL', TASK .. id, 'held')
end
local proved
-- may_wait(): proves that tasks can wait and be let in, before anything is written: where they cannot, the script
-- fails here and nothing has changed. Asked once a call.
local function may_wait()
  if proved then return end
  redis.call('HDEL', LIMITS, '')
  redis.call('ZREM', WAITING, '')
  proved = true
end
-- enter(id, task, under): a task goes into the stream if all of its keys have room, and takes them;
-- otherwise it holds nothing but its turn in an order, and waits under the first that has none. `under`: the key in
-- whose line it is the first. Answers nothing when it is in; else the key, the reason, and when
-- there will be room, if that is known. A task: name, payload, attempt, recovered, opts, gate and, where
-- it has them, held, place, since_ms; waits: whether it has been waiting already.
local function enter(id, task, under)
  local asked = task.terms or terms(task.gate)
  local keys, kept = asked.keys, task.held == 'o'
  may_wait()
  if asked.expires and asked.expires < NOW then
    if not task.waits then wait(id, task, 'limit', '') end
    return later('end', ref_of(id), 'expired')
  end
  for i = 1, #keys do
    local term = keys[i]
    if not (kept and term.order) then
      local reason, at = obstacle(term, term.key == under or in_front(term, task, asked.priority))
      if reason then
        local excess = standing(term).rule.excess
        if reason ~= 'paused' and term.key ~= under and (excess == 'drop' or excess == 'cancel_new') then
          if not task.waits then wait(id, task, reason, '') end
          later('end', ref_of(id), 'cancelled\ndropped by limit ' .. term.key)
          return nil
        end
        if term.key == under then return under, reason, at end
        wait(id, task, reason, term.key)
        if i > 1 and keys[1].order and not kept then hold_turn(id, keys[1], keys[1].key == under) end
        join_line(ref_of(id), term, task.place, asked.priority)
        if excess == 'cancel_running' and reason == 'limit' then later('oldest', term.key) end
        if at then timer(math.max(at, NOW + TICK_MS), cjson.encode({ 'more', term.key, '' })) end
        return term.key, reason, at
      end
    end
  end
  for i = 1, #keys do
    if not (kept and keys[i].order) then take(keys[i], keys[i].key == under) end
  end
  if task.waits then
    undoing('ZADD', WAITING, task.since_ms, ref_of(id))
    redis.call('ZREM', WAITING, ref_of(id))
  end
  let_in(id, task)
end
local freed = {}
-- give_back(id, gate, held, stays): the slots of a task whose entry has ended or moved; those that have
-- room now are followed up. `stays`: it is tried again later, and keeps what is strictly in order.
local function give_back(id, gate, held, stays)
  if not held then return end
  local keys, kept = terms(gate).keys, false
  for i = 1, #keys do
    local term = keys[i]
    if stays and term.order then
      kept = true
    elseif held == '1' or term.order then
      freed[term.key] = (freed[term.key] or 0) + term.weight
    end
  end
  if kept then
    redis.call('HSET', TASK .. id, 'held', 'o')
  elseif stays then
    redis.call('HDEL', TASK .. id, 'held')
  end
end
-- free_key(key, n): so many slots of a key are free; who waits under it is followed up.
local function free_key(key, n)
  local now = standing({ key = key })
  if now.used > n then
    redis.call('HINCRBY', LIMITS, 's' .. key, -n)
  else
    redis.call('HDEL', LIMITS, 's' .. key)
  end
  now.used = now.used - n
  if now.waiting > 0 then later('more', key) end
end
-- free(): the slots that were given back are free: one step a key, however many tasks it was. What fails is
-- done later, by a timer with words of its own: two of them are not one.
local function free()
  for key, n in pairs(freed) do
    freed[key] = nil
    if not pcall(free_key, key, n) then
      local time = redis.call('TIME')
      later('free', key, int(n) .. ' ' .. time[1] .. '.' .. time[2])
    end
  end
end
-- close(id, state): what a gated task held or locked is free, once its end is written.
local function close(id, state)
  local has = redis.call('HMGET', TASK .. id, 'gate', 'held', 'after', 'under', 'state')
  if has[3] then later('read', ref_of(id)) end
  if not has[1] then return end
  local asked, ref = terms(has[1]), ref_of(id)
  redis.call('HDEL', TASK .. id, 'gate', 'held')
  give_back(id, has[1], has[2], false)
  if asked.unique then
    local holder = redis.call('HGET', UNIQUE, asked.unique)
    if holder == 's' .. ref or holder == 't' .. ref then redis.call('HDEL', UNIQUE, asked.unique) end
  end
  if state ~= 'failed' then return end
  for i = 1, #asked.keys do
    local term = asked.keys[i]
    if term.order and standing(term).rule.on_failure == 'pause' then
      redis.call('HSET', LIMITS, 'p' .. term.key, int(NOW))
      standing(term).paused = int(NOW)
    end
  end
end
-- closed(id, state): close, where nothing can stop what is next: what fails is done later.
local function closed(id, state)
  if not pcall(close, id, state) then later('close', ref_of(id), state) end
end
-- dated(opts): the options of a task with its deadline as a time of the server's, and their gate.
local function dated(opts)
  local gate = option(opts, 'gate')
  local wait_ms = string.match(gate, 'x %+(%d+)$')
  if not wait_ms then return opts, gate end
  local deadline = int(NOW + tonumber(wait_ms))
  local from, to = string.find(opts, 'x +' .. wait_ms .. '"', 1, true)
  return string.sub(opts, 1, from - 1) .. 'x ' .. deadline .. string.sub(opts, to),
    (string.gsub(gate, 'x %+%d+$', 'x ' .. deadline))
end
-- again_opts(opts): the options of a task that an operator lets run again, whose deadline counts no more,
-- and their gate.
local function again_opts(opts)
  local gate = option(opts, 'gate')
  if not string.find(gate, 'x %d+$') then return opts, gate end
  local last = string.match(gate, 'x %d+$')
  local from = string.find(opts, last .. '"', 1, true)
  local before = string.gsub(string.sub(opts, 1, from - 1), '\\n$', '')
  return before .. string.sub(opts, from + #last), (string.gsub(gate, '\n?x %d+$', ''))
end
-- lock(id, gate): a task that runs again has its unique key again, where no other has it.
local function lock(id, gate)
  local asked = terms(gate)
  if asked.unique and not string.find(asked.scope, '^d') then
    redis.call('HSETNX', UNIQUE, asked.unique, asked.scope .. ref_of(id))
  end
end
