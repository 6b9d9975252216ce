-- What is written in one command for many tasks, once for each set: members with their scores to add, members to
-- remove. The first of each set is written at once: it shows that the others can be.
local added, removed = {}, {}
-- shorten(list, n): what was noted last is not to be.
local function shorten(list, n)
  for k = #list, n + 1, -1 do list[k] = nil end
end
-- add_to(set, score, member): a member stands in a sorted set before anything reads it. Noted for undoing.
local function add_to(set, score, member)
  local list = added[set]
  if not list then
    redis.call('ZADD', set, score, member)
    added[set] = {}
    return undoing('ZREM', set, member)
  end
  noted[#noted + 1] = { shorten, list, #list }
  list[#list + 1], list[#list + 2] = score, member
end
-- leave(set, member): a member that was read in a sorted set leaves it before anything reads it again.
local function leave(set, member)
  local list = removed[set]
  if not list then
    list = {}
    removed[set] = list
  end
  list[#list + 1] = member
  return list
end
-- remove_from(set, member): the same, noted for undoing.
local function remove_from(set, member)
  local list = leave(set, member)
  noted[#noted + 1] = { shorten, list, #list - 1 }
end
-- Groups that take turns since this call, each after the virtual time `since`; nil until the first.
local newcomers
-- take_part(group): a group takes turns, if it did not. The first of a call is written at once, the others with the sets.
-- Noted for undoing where nothing is written.
local function take_part(group)
  if not newcomers then
    newcomers = { since = redis.call('HGET', LIMITS, 'v') or 0 }
    redis.call('ZADD', SHARES, 'NX', newcomers.since, group)
    return
  end
  noted[#noted + 1] = { shorten, newcomers, #newcomers }
  local n = #newcomers
  newcomers[n + 1], newcomers[n + 2] = newcomers.since, group
end
-- write_sets(): what was noted of sorted sets is written.
local function write_sets()
  if newcomers then
    local all = newcomers
    newcomers = nil
    for from = 1, #all, 1000 do
      local to = math.min(from + 999, #all)
      redis.call('ZADD', SHARES, 'NX', unpack(all, from, to))
    end
  end
  if not (next(added) or next(removed)) then return end
  for _, command in ipairs({ 'ZADD', 'ZREM' }) do
    local lists = command == 'ZADD' and added or removed
    for set, list in pairs(lists) do
      for from = 1, #list, 1000 do
        local to = math.min(from + 999, #list)
        redis.call(command, set, unpack(list, from, to))
      end
    end
    for set, list in pairs(lists) do
      if list[1] then lists[set] = command == 'ZADD' and {} or nil end
    end
  end
end
-- What other files call of the block below; the rest of it takes none of the 200 locals that Lua allows a script.
local new_place, leave_line, wait, enter, lock
do
local last_place, noted_place, places = nil, 0, 1
-- new_place(): the next number in line: of microseconds, but never one that was given before. As many as the
-- call has had are noted ahead: few writes for many.
function new_place()
  if not last_place then
    last_place = math.max(tonumber(redis.call('HGET', LIMITS, 'n') or 0), NOW * 1000 - 1)
  end
  last_place = last_place + 1
  if last_place > noted_place then
    noted_place = last_place + places - 1
    redis.call('HSET', LIMITS, 'n', int(noted_place))
    places = 2 * places
  end
  return last_place
end
-- place_of(id, task): a task's place in line: that which it has, or the next.
local function place_of(id, task)
  if not task.place then
    task.place = task.waits and tonumber(redis.call('HGET', TASK .. id, 'place') or 0) or new_place()
  end
  return task.place
end
-- in_front(id, term, task, priority): whether a task would be the first in the line under a key: one that comes from
-- another line, or is more urgent, may have a place before all that wait there.
local function in_front(id, term, task, priority)
  local now = standing(term)
  if now.waiting <= 0 or (term.order and not task.place) then return false end
  local line = list_of(term)
  now.heads = now.heads or {}
  local first = now.heads[line]
  if not first then
    write_sets()
    first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2]
    now.heads[line] = first
  end
  local place = task.waits and place_of(id, task) or task.place or NOW * 1000
  return not first or (term.order and place or place - priority * AGEING_US) < tonumber(first)
end
-- take(term, late): a slot and, where there is a rate, a token. Its time has come already for what waited
-- for it: a timer that is late, by a little, costs no token.
local function take(term, late)
  local now = standing(term)
  recount(now, term.weight, 0)
  noted[#noted + 1] = { recount, now, -term.weight, 0 }
  local rule, tat = now.rule, now.tat
  if rule.rate then
    now.tat = math.max(tat, late and NOW - SLACK_MS or NOW) + term.weight * rule.per / rule.rate
    redis.call('HSET', LIMITS, 't' .. term.key, string.format('%.3f', now.tat))
    undoing('HSET', LIMITS, 't' .. term.key, tat)
  end
end
-- join_line(ref, term, place, priority): a task stands in the line under a key. Noted for undoing.
local function join_line(ref, term, place, priority)
  local now, line = standing(term), list_of(term)
  local score = term.order and place or place - priority * AGEING_US
  add_to(line, int(score), ref)
  local heads = now.heads
  if now.waiting == 0 then
    now.heads = { [line] = score }
  elseif heads and heads[line] and score < tonumber(heads[line]) then
    heads[line] = score
  end
  recount(now, 0, 1)
  noted[#noted + 1] = { recount, now, 0, -1 }
  if term.group then take_part(term.group) end
end
-- leave_shares(line, group): a group of which nobody waits takes no turn.
local function leave_shares(line, group)
  if redis.call('EXISTS', line) == 0 then redis.call('ZREM', SHARES, group) end
end
-- leave_line(ref, under, gate): a task stands in the line under a key no more.
function leave_line(ref, under, gate)
  local term = term_of(gate, under)
  if not term then return end
  local line = list_of(term)
  write_sets()
  if redis.call('ZREM', line, ref) == 1 then
    local now = standing(term)
    now.heads = nil
    recount(now, 0, -1)
  end
  if term.group then leave_shares(line, term.group) end
end
local NONE = {}
-- wait(id, task, reason, under): a task is in no stream, but accepted: its record says what it waits for.
-- Noted for undoing where it did not wait before.
function wait(id, task, reason, under)
  local record, ref = TASK .. id, ref_of(id)
  place_of(id, task)
  if not task.waits then
    if task.new then -- who accepts it undoes that; its entry is empty already
      local more = task.more or NONE
      if under == '' then
        redis.call('HSET', record, 'state', 'waiting', 'reason', reason, 'place', int(task.place), 'name', task.name,
          'payload', task.payload, 'opts', task.opts, unpack(more, 1, #more))
      else
        redis.call('HSET', record, 'state', 'waiting', 'reason', reason, 'place', int(task.place), 'name', task.name,
          'payload', task.payload, 'opts', task.opts, 'under', under, unpack(more, 1, #more))
      end
    else
      undoing('HDEL', record, 'under', 'place', 'parents', 'due')
      redis.call('HSET', record, 'entry', '', 'state', 'waiting', 'reason', reason, 'under', under,
        'place', int(task.place), 'name', task.name, 'payload', task.payload, 'attempt', task.attempt,
        'recovered', task.recovered, 'opts', task.opts)
    end
    add_to(WAITING, NOW_TEXT, ref)
    local expires = (task.terms or terms(task.gate or '')).expires
    if expires and expires >= NOW then timer(expires + 1, cjson.encode({ 'late', ref, '' })) end
  else
    redis.call('HSET', record, 'reason', reason, 'under', under)
    if not task.in_line then redis.call('HDEL', record, 'parents', 'due') end
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
-- enter(id, task, under): a task goes into the stream if all of its keys have room, and takes them;
-- otherwise it holds nothing but its turn in an order, and waits under the first that has none. `under`: the key in
-- whose line it is the first. Answers nothing when it is in; else the key, the reason, and when
-- there will be room, if that is known. A task: name, payload, attempt, recovered, opts, gate and, where
-- it has them, held, place; waits: whether it has been waiting already.
function enter(id, task, under)
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
      local reason, at = obstacle(term, term.key == under or in_front(id, term, task, asked.priority))
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
    remove_from(WAITING, ref_of(id))
  end
  let_in(id, task)
end
-- lock(id, gate): a task that runs again has its unique key again, where no other has it.
function lock(id, gate)
  local asked = terms(gate)
  if asked.unique and not string.find(asked.scope, '^d') then
    redis.call('HSETNX', UNIQUE, asked.unique, asked.scope .. ref_of(id))
  end
end
end
