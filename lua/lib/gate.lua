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
local last_place, noted_place, places = nil, 0, 1
-- new_place(): the next number in line: of microseconds, but never one that was given before. As many as the
-- call has had are noted ahead: few writes for many.
local function new_place()
  last_place = math.max((last_place or tonumber(redis.call('HGET', LIMITS, 'n') or 0)) + 1, NOW * 1000)
  if last_place > noted_place then
    noted_place = last_place + places - 1
    redis.call('HSET', LIMITS, 'n', int(noted_place))
    places = 2 * places
  end
  return last_place
end
-- join_line(ref, term, place, priority): a task stands in the line under a key. Noted for undoing.
local function join_line(ref, term, place, priority)
  local line = list_of(term)
  local score, heads = term.order and place or place - priority * AGEING_US, standing(term).heads
  redis.call('ZADD', line, int(score), ref)
  if heads and heads[line] and score < tonumber(heads[line]) then heads[line] = score end
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
  local term = term_of(gate, under)
  if not term then return end
  local line = list_of(term)
  if redis.call('ZREM', line, ref) == 1 then
    local now = standing(term)
    now.waiting, now.heads = now.waiting - 1, nil
    if now.waiting > 0 then
      redis.call('HINCRBY', LIMITS, 'w' .. under, -1)
    else
      redis.call('HDEL', LIMITS, 'w' .. under)
    end
  end
  if term.group and redis.call('EXISTS', line) == 0 then redis.call('ZREM', SHARES, term.group) end
end
local AWAY = { 'state', 'reason', 'under', 'since_ms', 'place', 'parents', 'due', 'name', 'payload', 'attempt',
  'recovered', 'opts', 'held' }
-- let_in(id, task): a task whose keys are taken is in the stream from now on. Noted for undoing, but for
-- what its record said of its waiting, which goes last.
local function let_in(id, task)
  local entry = add(id, task.name, task.payload, task.attempt, task.recovered, task.opts)
  undoing('XDEL', STREAM, entry)
  redis.call('HSET', TASK .. id, 'entry', entry)
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
    undoing('HDEL', record, 'under', 'since_ms', 'place', 'parents', 'due')
    redis.call('HSET', record, 'entry', '', 'state', 'waiting', 'reason', reason, 'under', under, 'since_ms',
      task.since_ms, 'place', int(task.place), 'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
      'recovered', task.recovered, 'opts', task.opts)
    redis.call('ZADD', WAITING, task.since_ms, ref)
    undoing('ZREM', WAITING, ref)
    local expires = (task.terms or terms(task.gate or '')).expires
    if expires and expires >= NOW then timer(expires + 1, cjson.encode({ 'late', ref, '' })) end
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
        local drops = excess == 'drop' or excess == 'cancel_new'
        if drops and reason ~= 'paused' and term.key ~= under and task.attempt == '1' and not asked.started then -- not one that is tried again
          if not task.waits then wait(id, task, reason, '') end
          later('end', ref_of(id), 'cancelled\ndropped by limit ' .. term.key)
          return nil
        end
        if term.key == under then return under, reason, at end
        wait(id, task, reason, term.key)
        if i > 1 and keys[1].order and not kept then hold_turn(id, keys[1], keys[1].key == under) end
        join_line(ref_of(id), term, task.place, asked.priority)
        if excess == 'cancel_running' and reason == 'limit' then timer(NOW, cjson.encode({ 'oldest', term.key, '' })) end
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
-- lock(id, gate): a task that runs again has its unique key again, where no other has it.
local function lock(id, gate)
  local asked = terms(gate)
  if asked.unique and not string.find(asked.scope, '^d') then
    redis.call('HSETNX', UNIQUE, asked.unique, asked.scope .. ref_of(id))
  end
end
