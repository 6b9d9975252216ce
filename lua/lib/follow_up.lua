-- How many steps follow from one call, at most: what is left over is for the next, by a timer.
local steps = 200
-- waiting_task(id, with_payload): a waiting task as its record says; nil where it does not wait.
local function waiting_task(id, with_payload)
  local has = redis.call('HMGET', TASK .. id, 'state', 'under', 'opts', 'place', 'since_ms', 'name', 'attempt',
    'recovered', 'due', 'held', with_payload and 'payload' or 'state')
  if has[1] ~= 'waiting' then return nil end
  return { waits = true, under = has[2] or '', opts = has[3] or '', gate = option(has[3], 'gate'),
    place = tonumber(has[4] or 0), since_ms = has[5], name = has[6] or '', attempt = has[7] or '1',
    recovered = has[8] or '0', due = has[9], held = has[10] or nil, was = 'waiting', entry = '',
    payload = with_payload and (has[11] or '') }
end
-- more(key): lets in the first in line under a key, as long as there is room.
local function more(key)
  local refs, at_ref = {}, 0 -- the first in line: nothing but this takes them out of it
  while true do
    local line, group, now = WAITING .. ':' .. key, nil, standing({ key = key })
    local most = now.rule.at_most or key == 'door' and width()
    if now.waiting <= 0 or now.paused or most and now.used > 0 and now.used >= most then return end
    if steps <= 0 then return later('more', key) end
    if key == 'door' then
      group = redis.call('ZRANGE', SHARES, 0, 0, 'WITHSCORES')
      if not group[1] then return end
      line = line .. '\n' .. group[1]
    end
    at_ref = at_ref + 1
    if group or not refs[at_ref] then
      local room = group and 1 or most and most - now.used or 5
      refs, at_ref = redis.call('ZRANGE', line, 0, int(math.max(math.min(room, 50), 1)) - 1), 1
    end
    local ref = refs[at_ref]
    steps = steps - 1
    if not ref then
      if not group then return redis.call('HDEL', LIMITS, 'w' .. key) end
      redis.call('ZREM', SHARES, group[1])
    else
      local id = visit(ref)
      local task = waiting_task(id, true)
      local term = task and task.under == key and term_of(task.gate, key)
      if not term then -- it is in this line by no doing of ours
        redis.call('ZREM', line, ref)
        redis.call('HINCRBY', LIMITS, 'w' .. key, -1)
        now.waiting, now.heads = now.waiting - 1, nil
      else
        local reason, at = obstacle(term, true)
        if reason then
          if at then timer(math.max(at, NOW + TICK_MS), cjson.encode({ 'more', key, '' })) end
          return
        end
        local fault, stays = whole(function()
          local under = enter(id, task, key)
          if under ~= key then leave_line(ref, key, task.gate) end
          return under == key
        end)
        if fault then
          stands = {}
          return error(fault, 0)
        end
        if stays then return end
        if group then
          local share = standing({ key = 'group:' .. group[1] }).rule.weight or term.share
          redis.call('HSET', LIMITS, 'v', group[2])
          redis.call('ZADD', SHARES, 'XX', string.format('%.6f', tonumber(group[2]) + 1 / share), group[1])
        end
      end
    end
  end
end
-- ready(id, task): a task whose parents have ended goes on: until it is due, or through its keys.
local function ready(id, task)
  local due = tonumber(task.due or 0)
  if due > NOW then
    redis.call('ZADD', DELAYED, int(due), id)
    undoing('ZREM', DELAYED, id)
    redis.call('ZREM', WAITING, ref_of(id))
    undoing('ZADD', WAITING, task.since_ms, ref_of(id))
    redis.call('HSET', TASK .. id, 'state', 'delayed', 'reason', 'delay')
    redis.call('HDEL', TASK .. id, 'under', 'since_ms', 'place', 'parents', 'due')
    redis.pcall('PUBLISH', 'wake:' .. STREAM, int(due))
    return
  end
  task.payload = redis.call('HGET', TASK .. id, 'payload') or ''
  enter(id, task, nil)
end
-- why(policy, what, state): why a dependant cannot run since that parent ended so; nil where it can.
local function why(policy, what, state)
  local kind, ref = string.match(what, '^(%a):(.*)$')
  if policy == 'e' or (policy == 's') == (state == 'succeeded') then return nil end
  local _, id = split(ref)
  return (kind == 'b' and 'batch ' or 'parent ') .. id .. ' ' .. state
end
local ENDS = { succeeded = 'result', failed = 'error', cancelled = 'reason', expired = 'reason' }
-- end_of(child, state): how a task that was returned has ended: its state, and its result, error or words.
local function end_of(child, state)
  local has = redis.call('HMGET', TASK .. child, 'state', ENDS[state])
  if has[2] and has[2] ~= '' then return state, has[2] end
  if not has[1] then return 'cancelled', 'what it returned, ' .. child .. ', is not known' end
  if state ~= 'succeeded' and state ~= 'failed' then return state, 'what it returned, ' .. child .. ', ' .. state end
  return 'failed', cjson.encode({ type = 'ResultError', traceback = '', message = 'the result of ' .. child .. ' is gone' })
end
-- ends_as(id, task, state): a task that waits for the last of those it returned ends as that one did, which
-- has ended in this state: whole or not at all, and like every other end.
local function ends_as(id, task, state)
  local record, body = TASK .. id, nil
  local has = redis.call('HMGET', record, 'continued', 'from', 'worker', 'run_ms')
  local ttl, dead_ttl, child = string.match(has[1] or '', '^(%d+) (%d+) (.*)$')
  if not child then return end
  local entry, worker, run_ms = string.match(has[2] or '', '^%S*'), has[3] or '', has[4] or ''
  state, body = end_of(child, state)
  local batch, unkept = countable(option(task.opts, 'batch')), state == 'succeeded' and ttl == '0'
  local note = state ~= 'succeeded' and body or ''
  if state == 'failed' then note = string.match(string.match(body, '"type": ?"([^"]*)"') or '', '[^.]*$') end
  local function written()
    redis.call('ZREM', WAITING, '')
    redis.call('HSET', record, 'state', state, 'entry', entry, 'finished_ms', int(NOW))
    undoing('HSET', record, 'state', 'waiting', 'entry', '', 'reason', 'parents')
    undoing('HDEL', record, 'finished_ms', 'result')
    if not unkept then redis.call('HSET', record, ENDS[state], body) end
    local life = { succeeded = unkept and '60000' or ttl, failed = dead_ttl }
    redis.call('PEXPIRE', record, life[state] or TTL)
    undoing('PERSIST', record)
    if state == 'failed' then
      redis.call('ZADD', DEAD, int(NOW), id)
      undoing('ZREM', DEAD, id)
      local old = redis.call('ZRANGEBYSCORE', DEAD, '-inf', int(NOW - tonumber(dead_ttl)), 'LIMIT', 0, 20)
      for i = 1, #old do redis.call('ZREM', DEAD, old[i]) end
    end
    local logged = log_attempt(id, task.name, state, worker, task.attempt, entry, run_ms, note)
    if logged then undoing('XDEL', HISTORY, logged) end
    beside(redis.pcall('HINCRBY', COUNTERS, state, 1))
  end
  local fault = whole(written)
  if fault then return error(fault, 0) end
  redis.call('ZREM', WAITING, ref_of(id))
  redis.pcall('HDEL', record, 'continued', 'recovered', 'under', 'since_ms', 'place', 'parents',
    ENDS[state] == 'reason' and '' or 'reason')
  if state ~= 'failed' then redis.pcall('HDEL', record, 'payload', 'opts') end
  local gate = option(task.opts, 'gate')
  if gate ~= '' then closed(id, state, gate, false) end
  notify_all(id, state, body, option(task.opts, 'inbox'), unkept)
  tally_one(batch, id, state, int(NOW))
  later('seen', ref_of(child), ref_of(id)) -- two that read it are two timers
end
-- release(edge, what, state): a parent of this dependant has ended.
local function release(edge, what, state)
  local policy, place, ref = string.match(edge, '^([%a=])(%d+) (.*)$')
  local id = visit(ref)
  local task = waiting_task(id)
  if not task or task.place ~= tonumber(place) or task.under ~= '' then return end
  if policy == '=' then return ends_as(id, task, state) end
  local words = why(policy, what, state)
  if words then return ended_unstarted(id, task, 'cancelled', words) end
  local left = redis.call('HINCRBY', TASK .. id, 'parents', -1)
  if left > 0 then return end
  local fault = whole(ready, id, task)
  if fault then
    redis.call('HINCRBY', TASK .. id, 'parents', 1)
    return error(fault, 0)
  end
end
-- stands_now(what, state): how a task or batch has ended by now, which had ended in that state; nil where it runs
-- again: who has not been released by then waits for its new end.
local function stands_now(what, state)
  local kind, ref = string.match(what, '^(%a):(.*)$')
  local id = visit(ref)
  if kind == 'b' then
    local has = redis.call('HMGET', BATCH .. id, 'total', 'finished_ms', 'succeeded')
    return not has[1] and state or has[2] and (has[3] == has[1] and 'succeeded' or 'failed')
  end
  local has = redis.call('HMGET', TASK .. id, 'state', 'entry')
  return not (has[1] or has[2]) and state or ENDS[has[1]] and has[1]
end
-- after(what, state): a task or batch has ended: its dependants are released, one by one. `state` of a timer ends with
-- a blank: it may be otherwise by now.
local function after(what, state)
  local line = DEPENDANTS .. what
  if string.sub(state, -1) == ' ' then state = stands_now(what, string.sub(state, 1, -2)) end
  if not state then return end
  while true do
    if steps <= 0 then return later('after', what, state) end
    local edge = redis.call('LPOP', line)
    if not edge then return end
    steps = steps - 1
    local ok, fault = pcall(release, edge, what, state)
    if not ok then
      redis.call('RPUSH', line, edge)
      return error(fault, 0)
    end
  end
end
-- seen(of): one fewer has still to read a record, by its key; one that all have read expires as it would have.
local function seen(of)
  local left = redis.pcall('HINCRBY', of, 'readers', -1)
  if left == -1 then -- nobody counts them any more
    redis.call('HDEL', of, 'readers')
  elseif left == 0 then
    local has = redis.call('HMGET', of, 'state', 'keep_ms')
    redis.call('HDEL', of, 'readers', 'keep_ms')
    if has[1] and has[2] and tonumber(has[2]) > 0 then redis.call('PEXPIRE', of, has[2]) end
  end
end
-- done_reading(ref): a task that has ended needs its parents' results no more, nor those of an earlier life.
local function done_reading(ref)
  local lane, id = split(ref)
  go_to(lane)
  local record, field = TASK .. id, 'after'
  local has, kept, n = redis.call('HMGET', record, 'after', 'read', 'state'), '', 0
  local edges = has[1] or ''
  if has[2] then
    field, edges = 'read', has[2]
  elseif not ENDS[has[3]] then
    return -- it runs again
  end
  for from, parents_lane, parent_id in string.gmatch(edges, '()%at(!?%a*) ([^\n]*)') do
    n = n + 1
    if n > 200 then
      kept = string.sub(edges, from)
      break
    end
    go_to(parents_lane)
    seen(TASK .. parent_id)
  end
  go_to(lane)
  steps = steps - math.ceil(n / 10)
  if kept ~= '' then
    redis.call('HSET', record, field, kept)
  else
    redis.call('HDEL', record, field)
  end
  if kept ~= '' or field == 'read' then later('read', ref) end
end
-- keys(prefix, cursor): lets in what has room under all keys that begin so.
local function keys(prefix, cursor)
  local page = redis.call('HSCAN', LIMITS, cursor, 'COUNT', 1000)
  steps = steps - 20
  for i = 1, #page[2], 2 do
    local field = page[2][i]
    if string.sub(field, 1, #prefix + 1) == 'w' .. prefix then later('more', string.sub(field, 2)) end
  end
  if page[1] ~= '0' then later('keys', prefix, page[1]) end
end
-- late(ref): a task that still waits at its deadline has ended.
local function late(ref)
  local id = visit(ref)
  local task = waiting_task(id)
  local expires = task and terms(task.gate).expires
  if redis.call('HEXISTS', TASK .. id, 'continued') == 1 then return end -- it has started
  if expires and expires < NOW then ended_unstarted(id, task, 'expired', 'not started by its deadline') end
end
-- one(kind, what, detail): follows up one thing; raises what fails.
local function one(kind, what, detail)
  if kind == 'more' then return more(what) end
  if kind == 'keys' then return keys(what, detail) end
  if kind == 'free' then return free_key(what, tonumber(string.match(detail, '^%-?%d+'))) end
  if kind == 'after' then return after(what, detail) end
  if kind == 'read' then return done_reading(what) end
  if kind == 'late' then return late(what) end
  if kind == 'seen' then
    local id = visit(what)
    return seen(TASK .. id)
  end
  if kind == 'close' then
    local id = visit(what)
    local text = detail
    local words = cjson.decode(text)
    return close(id, words[1], words[2], words[3])
  end
  if kind == 'unique' then
    local until_ms = string.match(redis.call('HGET', UNIQUE, what) or '', '^d(%d+) ')
    if until_ms and tonumber(until_ms) <= NOW then redis.call('HDEL', UNIQUE, what) end
    return
  end
  if kind == 'end' then
    local id = visit(what)
    local task = waiting_task(id)
    local state, words = string.match(detail, '^(%a+)\n?(.*)$')
    if state == 'expired' then words = 'not started by its deadline' end
    if task then ended_unstarted(id, task, state, words) end
  end
end
-- put_off(due, kind, what, detail): a timer follows it up.
local function put_off(due, kind, what, detail)
  if kind == 'after' then detail = detail .. ' ' end
  timer(due, cjson.encode({ kind, what, detail }))
end
-- follow_up(): does what follows from what this script did (see later), within bounds: what is left over,
-- and what fails, a timer continues. Fails itself only where no timer can be kept.
local function follow_up()
  free()
  local at = 1
  while at <= #todo do
    local kind, what, detail = todo[at][1], todo[at][2], todo[at][3]
    at = at + 1
    if steps <= 0 then
      put_off(NOW, kind, what, detail)
    else
      steps = steps - 1
      local ok = pcall(one, kind, what, detail) and pcall(free)
      if not ok then put_off(NOW + 5000, kind, what, detail) end
    end
  end
  todo = {}
  go_to(HOME)
end
