-- The states in which tasks end, and what a record has of each end.
local ENDS = { succeeded = 'result', failed = 'error', cancelled = 'reason', expired = 'reason' }
-- What other files call of the block below; the rest of it takes none of the 200 locals that Lua allows a script.
local why, follow_up
do
-- waiting_task(id): a waiting task as its record says, without its payload; nil where it does not wait.
local function waiting_task(id)
  local has = redis.call('HMGET', TASK .. id, 'state', 'under', 'opts', 'place', 'name', 'attempt', 'recovered', 'due',
    'held')
  if has[1] ~= 'waiting' then return nil end
  return { waits = true, under = has[2] or '', opts = has[3] or '', gate = option(has[3], 'gate'),
    place = tonumber(has[4] or 0), name = has[5] or '', attempt = has[6] or '1', recovered = has[7] or '0',
    due = has[8], held = has[9] or nil, was = 'waiting', entry = '' }
end
-- ready(id, task): a task whose parents have ended goes on: until it is due, or through its keys.
local function ready(id, task)
  local due = tonumber(task.due or 0)
  if due > NOW then
    redis.call('ZADD', DELAYED, int(due), id)
    undoing('ZREM', DELAYED, id)
    remove_from(WAITING, ref_of(id))
    redis.call('HSET', TASK .. id, 'state', 'delayed', 'reason', 'delay', 'attempt', task.attempt, 'recovered',
      task.recovered)
    redis.call('HDEL', TASK .. id, 'under', 'place', 'parents', 'due')
    redis.pcall('PUBLISH', 'wake:' .. STREAM, int(due))
    return
  end
  enter(id, task, nil)
end
-- why(policy, what, state): why a dependant cannot run since that parent ended so; nil where it can.
function why(policy, what, state)
  local kind, ref = string.match(what, '^(%a):(.*)$')
  if policy == 'e' or (policy == 's') == (state == 'succeeded') then return nil end
  local _, id = split(ref)
  return (kind == 'b' and 'batch ' or 'parent ') .. id .. ' ' .. state
end
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
  redis.pcall('HDEL', record, 'continued', 'recovered', 'under', 'place', 'parents',
    ENDS[state] == 'reason' and '' or 'reason')
  if state ~= 'failed' then redis.pcall('HDEL', record, 'payload', 'opts') end
  local gate = option(task.opts, 'gate')
  if gate ~= '' then closed(id, state, gate, false) end
  notify_all(id, state, body, option(task.opts, 'inbox'), unkept)
  tally_one(batch, id, state, int(NOW))
  later('seen', ref_of(child), ref_of(id)) -- two that read it are two timers
end
-- put_off(due, kind, what, detail): a timer follows it up.
local function put_off(due, kind, what, detail)
  if kind == 'after' then detail = detail .. ' ' end
  timer(due, cjson.encode({ kind, what, detail }))
end
-- Dependants that this call has read, by ref, as far as it takes to release them; and those of whose parents fewer than
-- all have ended, which is not written yet.
local dependants, partly = {}, {}
-- write_partly(): how many of their parents have ended is written. Where it cannot be, their edges are there again.
local function write_partly()
  for i = 1, #partly do
    local found = partly[i]
    if found.waits and found.ended > 0 then
      go_to(found.lane)
      if not pcall(redis.call, 'HINCRBY', TASK .. found.id, 'parents', -found.ended) then
        for k = 1, #found.edges, 3 do
          redis.call('RPUSH', DEPENDANTS .. found.edges[k], found.edges[k + 2])
          put_off(NOW + 5000, 'after', found.edges[k], found.edges[k + 1])
        end
      end
    end
    found.ended, found.edges = 0, nil
  end
  partly = {}
end
-- What is read of a dependant: how it waits, and from the fifth on what it takes to let it go.
local WAITS = { 'state', 'under', 'place', 'parents', 'opts', 'name', 'payload', 'attempt', 'recovered', 'due', 'held' }
-- How much of it is read at once: all, as long as they wait for one or two. Of one that waits for many, the payload would
-- be read as often.
local ahead = #WAITS
-- dependant(ref): a task that waits for parents, as its record says.
local function dependant(ref)
  local id = visit(ref)
  local has = redis.call('HMGET', TASK .. id, unpack(WAITS, 1, ahead))
  local found = { waits = has[1] == 'waiting' and (has[2] or '') == '', id = id, lane = HERE, place = has[3],
    parents = tonumber(has[4] or 0), ended = 0, edges = false, has = ahead > 4 and has }
  ahead = found.parents <= 2 and #WAITS or 4
  dependants[ref] = found
  return found
end
-- release(edge, what, state): a parent of this dependant has ended.
local function release(edge, what, state)
  local policy, place, ref = string.match(edge, '^([%a=])(%d+) (.*)$')
  local found = dependants[ref] or dependant(ref)
  if not found.waits or found.place ~= place then return end
  local id = found.id
  go_to(found.lane)
  local words = (policy ~= 's' or state ~= 'succeeded') and policy ~= '=' and why(policy, what, state)
  if policy == '=' or words then
    write_partly()
    found.waits = false
    go_to(found.lane)
    local task = waiting_task(id)
    if not task then return end
    if words then return ended_unstarted(id, task, 'cancelled', words) end
    return ends_as(id, task, state)
  end
  if found.parents > 1 then
    if not found.edges then
      found.edges = { what, state, edge }
      partly[#partly + 1] = found
    else
      local n = #found.edges
      found.edges[n + 1], found.edges[n + 2], found.edges[n + 3] = what, state, edge
    end
    found.parents, found.ended = found.parents - 1, found.ended + 1
    return
  end
  local has = found.has or redis.call('HMGET', TASK .. id, unpack(WAITS, 1, #WAITS))
  local opts, is_new = has[5] or '', not (has[8] or has[10] or has[11])
  local gate = option(opts, 'gate')
  local asked = terms(gate)
  if is_new and asked.reads and not asked.expires then
    may_wait()
    let_go(id, has[6] or '', has[7] or '', '1', '0', opts, AWAY.parents)
    leave(WAITING, ref)
    found.waits = false
    return
  end
  local task = { waits = true, opts = opts, gate = gate, place = tonumber(place), name = has[6] or '',
    payload = has[7] or '', attempt = has[8] or '1', recovered = has[9] or '0', due = has[10], held = has[11] or nil,
    away = is_new and AWAY.parents or nil }
  local fault = whole(ready, id, task)
  if fault then error(fault, 0) end
  found.waits = false
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
    local most = math.min(steps, 100)
    local edges = redis.call('LPOP', line, most)
    if not edges then return end
    steps = steps - #edges
    for i = 1, #edges do
      local ok, fault = pcall(release, edges[i], what, state)
      if not ok then
        redis.call('RPUSH', line, unpack(edges, i, #edges))
        return error(fault, 0)
      end
    end
    if #edges < most then return end
  end
end
-- How many have read a record, and are not written yet, by its ref.
local read_by = {}
-- seen(ref, n): so many fewer have still to read a record; one that all have read expires as it would have.
local function seen(ref, n)
  local id = visit(ref)
  local of = TASK .. id
  local has = redis.call('HMGET', of, 'readers', 'state', 'keep_ms')
  if not has[1] then return end -- nobody counts them any more
  if tonumber(has[1]) > n then return redis.call('HINCRBY', of, 'readers', -n) end
  redis.call('HDEL', of, 'readers', 'keep_ms')
  if has[2] and has[3] and tonumber(has[3]) > 0 then redis.call('PEXPIRE', of, has[3]) end
end
-- write_seen(): what was read is written, one by one.
local function write_seen()
  local all = read_by
  read_by = {}
  for ref, n in pairs(all) do
    if not pcall(seen, ref, n) then
      local time = redis.call('TIME')
      timer(NOW + 5000, cjson.encode({ 'readers', ref, int(n) .. ' ' .. time[1] .. '.' .. time[2] }))
    end
  end
end
-- done_reading(ref): a task that has ended needs its parents' results no more, nor those of an earlier life.
local function done_reading(ref)
  local record, field = TASK .. visit(ref), 'after'
  local has, kept, n = redis.call('HMGET', record, 'after', 'read', 'state'), '', 0
  local edges = has[1] or ''
  if has[2] then
    field, edges = 'read', has[2]
  elseif edges == '' or not ENDS[has[3]] then
    return -- it has said so, or runs again
  end
  local parents = {}
  for from, parent in string.gmatch(edges, '()%at([^\n]*)') do
    n = n + 1
    if n > 200 then
      kept = string.sub(edges, from)
      break
    end
    local blank = string.find(parent, ' ', 1, true)
    local id = string.sub(parent, blank + 1)
    parents[n] = blank == 1 and id or string.sub(parent, 1, blank - 1) .. '\n' .. id
  end
  steps = steps - math.ceil(n / 10)
  if kept ~= '' then
    redis.call('HSET', record, field, kept)
  else
    redis.call('HDEL', record, field)
  end
  for i = 1, #parents do read_by[parents[i]] = (read_by[parents[i]] or 0) + 1 end
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
  if kind == 'late' or kind == 'end' then write_partly() end
  if kind == 'late' then return late(what) end
  if kind == 'waits' then return recount(standing({ key = what }), 0, tonumber(string.match(detail, '^%-?%d+'))) end
  if kind == 'seen' then return seen(what, 1) end
  if kind == 'readers' then return seen(what, tonumber(string.match(detail, '^%d+'))) end
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
-- follow_all(): does what follows, within bounds.
local function follow_all()
  free()
  local at = 1
  while at <= #todo do
    local kind, what, detail = todo[at][1], todo[at][2], todo[at][3]
    at = at + 1
    if steps <= 0 then
      put_off(NOW, kind, what, detail)
    else
      steps = steps - 1
      local ok = pcall(one, kind, what, detail) and (not next(freed) or pcall(free))
      if not ok then put_off(NOW + 5000, kind, what, detail) end
    end
  end
  todo = {}
end
-- follow_up(): does what follows from what this script did (see later), within bounds: what is left over,
-- and what fails, a timer continues. Fails itself only where no timer can be kept. What was noted of sets and counts is
-- written.
function follow_up()
  write_sets()
  local ok, fault = pcall(follow_all)
  write_partly()
  write_seen()
  write_sets()
  write_counts()
  go_to(HOME)
  if not ok then error(fault, 0) end
end
end
