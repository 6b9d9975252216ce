-- parent(kind, lane, id): how a parent stands: its state once it has ended, '' before; nil where
-- there is none.
local function parent(kind, lane, id)
  go_to(lane)
  if kind == 'b' then
    local has = redis.call('HMGET', BATCH .. id, 'total', 'finished_ms', 'succeeded')
    if not has[1] then return nil end
    if not has[2] then return '' end
    return has[3] == has[1] and 'succeeded' or 'failed'
  end
  local has = look({}, 'HMGET', TASK .. id, 'state', 'entry', 'readers')
  if not has[1] and not has[2] then return nil end
  if has[1] and has[1] ~= 'delayed' and has[1] ~= 'waiting' then return has[1] end
  return ''
end
-- depend(edge, kind, lane, id, state, reads): the edge is written beside a parent that has not ended, and its
-- record will be there until the dependant has read it, if it reads it.
local function depend(edge, kind, lane, id, state, reads)
  go_to(lane)
  if kind == 'b' then
    if state == '' then
      redis.call('HSET', BATCH .. id, 'dependants', '1')
      redis.call('RPUSH', DEPENDANTS .. 'b:' .. ref_of(id), edge)
    end
    return
  end
  local record = TASK .. id
  if state ~= '' then
    local left = reads and redis.call('PTTL', record) or 0
    if left > 0 then
      redis.call('HSETNX', record, 'keep_ms', left)
      redis.call('PERSIST', record)
    end
  else
    redis.call('RPUSH', DEPENDANTS .. 't:' .. ref_of(id), edge)
    mark_parent(id)
  end
  if not reads then return end
  redis.call('HINCRBY', record, 'readers', 1)
  undoing('HINCRBY', record, 'readers', -1)
end
-- holder_of(key): who holds a unique key: its lane, id and record, and how it stands: delayed, waiting, queued,
-- running or ended; nil where it is free.
local function holder_of(key)
  local value = redis.call('HGET', UNIQUE, key)
  if not value then return nil end
  local scope, until_ms, ref = string.match(value, '^(%a)(%d*) ?(.*)$')
  if scope ~= 'd' then ref = string.sub(value, 2) end
  local lane, id = split(ref)
  go_to(lane)
  local has = look({}, 'HMGET', TASK .. id, 'state', 'entry', 'added_ms', 'continued', 'reason')
  local stands = has[1]
  if not stands then
    stands = (has[2] or '') == '' and 'ended' or #pending(has[2], has[2], 1) == 1 and 'running'
      or read(has[2]) and 'queued' or 'ended' -- its entry was deleted by other hands
  elseif (has[4] and stands == 'waiting') or has[5] == 'sleep' or has[5] == 'event' then
    stands = 'running' -- it has started, and waits for what it returned, sleeps, or waits for an event
  elseif stands ~= 'delayed' and stands ~= 'waiting' then
    stands = 'ended'
  end
  if scope == 'd' then
    if tonumber(until_ms) <= NOW then return nil end
  elseif stands == 'ended' or (scope == 't' and stands == 'running') then
    return nil -- an end that did not free it, or a start
  end
  return { lane = lane, id = id, ref = ref, stands = stands, entry = has[2], added_ms = has[3] }
end
-- put_in(holder, payload): a task that has not started has another payload from now on.
local function put_in(holder, payload)
  local record = TASK .. holder.id
  if holder.stands ~= 'queued' then
    undoing('HSET', record, 'payload', redis.call('HGET', record, 'payload') or '')
    return redis.call('HSET', record, 'payload', payload)
  end
  local task = read(holder.entry)
  if not sound(task) or task.payload == payload then return end
  local entry = add(holder.id, task.name, payload, task.attempt, task.recovered, task.opts)
  undoing('XDEL', STREAM, entry)
  redis.call('HSET', record, 'entry', entry)
  redis.call('XDEL', STREAM, holder.entry)
end
-- conflict(holder, task, policy): what becomes of a task whose unique key is held: a word, and what is
-- said with it; nil when it is to be added after all.
local function conflict(holder, task, policy)
  go_to(holder.lane)
  local word, most = string.match(policy, '^%?(%a+) ?(%d*)$')
  if holder.stands == 'ended' then return 'joined' end
  if holder.stands == 'running' then
    if word ~= 'again' then return 'joined' end
    task.conditions = task.conditions .. '\net' .. holder.lane .. ' ' .. holder.id
    task.again = true
    return nil
  end
  if word == 'replace' then
    put_in(holder, task.payload)
    return 'replaced'
  end
  if word == 'push' then
    if holder.stands ~= 'delayed' then
      put_in(holder, task.payload)
      return 'replaced'
    end
    local due = math.max(task.due, NOW)
    if most ~= '' then due = math.min(due, tonumber(holder.added_ms or NOW) + tonumber(most)) end
    put_in(holder, task.payload)
    redis.call('ZADD', DELAYED, int(due), holder.id)
    return 'pushed'
  end
  return 'joined'
end
-- accepted(task): a new task is in the stream, or waits, from now on; nothing is answered then. Else what
-- happened instead; raises what fails. Of a task: id, name, payload, opts, due (ms, 0 now), conditions.
local function accepted(task)
  local id, record = task.id, TASK .. task.id
  local lane, gate = HERE, nil
  undoing('HDEL', record, 'entry')
  task.opts, gate = dated(task.opts)
  local asked = terms(gate)
  for i = 1, #asked.keys do
    local term = asked.keys[i]
    if term.weight > 1 then
      local most = standing(term).rule.at_most
      if most and term.weight > most then
        error('too heavy: ' .. term.key .. ' lets in ' .. int(most) .. ' at most, not ' .. int(term.weight), 0)
      end
    end
  end
  if asked.unique then
    local holder = holder_of(asked.unique)
    local policy = string.match('\n' .. task.conditions, '\n(%?[^\n]*)') or '?keep'
    if holder and holder.id == id and holder.lane == lane then holder = nil end
    if holder then
      local word = conflict(holder, task, policy)
      go_to(lane)
      if word then
        redis.call('HDEL', record, 'entry')
        return { word, holder.ref, holder.stands }
      end
    end
    go_to(lane)
    local span = string.match(asked.scope, '^d(%d+)$')
    local value = span and 'd' .. int(NOW + tonumber(span)) .. ' ' .. ref_of(id) or asked.scope .. ref_of(id)
    local was = redis.call('HGET', UNIQUE, asked.unique)
    redis.call('HSET', UNIQUE, asked.unique, value)
    if was then undoing('HSET', UNIQUE, asked.unique, was) else undoing('HDEL', UNIQUE, asked.unique) end
    if span then timer(NOW + tonumber(span) + 1, cjson.encode({ 'unique', asked.unique, '' })) end
    redis.call('HSET', record, 'added_ms', int(NOW))
    undoing('HDEL', record, 'added_ms')
  end
  local made = { name = task.name, payload = task.payload, attempt = '1', recovered = '0', opts = task.opts,
    gate = gate, terms = asked }
  local edges, parents, unmet = {}, 0, nil
  for policy, kind, of, other in string.gmatch('\n' .. task.conditions, '\n(%a)(%a)(!?%a*) ([^\n]*)') do
    local state = parent(kind, of, other)
    if not state or (other == id and of == lane) then error('unknown parent ' .. other, 0) end
    edges[#edges + 1] = { policy, kind, of, other, state }
    if state == '' then
      parents = parents + 1
    else
      local what = kind .. ':' .. (of == '' and other or of .. '\n' .. other)
      unmet = unmet or why(policy, what, state)
    end
  end
  go_to(lane)
  local happened = task.again and { 'again', id, '' } or nil
  if #edges > 0 then
    local lines = {}
    made.place = new_place()
    local edge = int(made.place) .. ' ' .. ref_of(id)
    for i = 1, #edges do
      lines[i] = edges[i][1] .. edges[i][2] .. edges[i][3] .. ' ' .. edges[i][4]
      if not unmet then depend(edges[i][1] .. edge, edges[i][2], edges[i][3], edges[i][4], edges[i][5], asked.parents) end
    end
    go_to(lane)
    undoing('HDEL', record, 'after')
    if not unmet and asked.parents then redis.call('HSET', record, 'after', table.concat(lines, '\n')) end
  end
  undoing('HDEL', record, 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts')
  if unmet then
    wait(id, made, 'parents', '')
    later('end', ref_of(id), 'cancelled\n' .. unmet)
  elseif parents > 0 then
    wait(id, made, 'parents', '')
    redis.call('HSET', record, 'parents', parents)
    if task.due > NOW then redis.call('HSET', record, 'due', int(task.due)) end
  elseif task.due > NOW then
    redis.call('HSET', record, 'state', 'delayed', 'reason', 'delay', 'name', task.name, 'payload', task.payload,
      'attempt', '1', 'recovered', '0', 'opts', task.opts)
    redis.call('ZADD', DELAYED, int(task.due), id)
    undoing('ZREM', DELAYED, id)
  elseif gate == '' then
    local entry = add(id, task.name, task.payload, '1', '0', task.opts)
    undoing('XDEL', STREAM, entry)
    redis.call('HSET', record, 'entry', entry)
  else
    enter(id, made, nil)
    if #todo > 0 and todo[#todo][1] == 'end' and todo[#todo][2] == ref_of(id) then
      local words = string.match(todo[#todo][3], '\n(.*)$')
      happened = words and { 'dropped', id, words } or happened
    end
  end
  return happened
end
local able_to
-- may_accept(): proves that tasks can be accepted, before anything is written: a full server, and one where they could
-- not wait, is noticed here. Asked once a call.
local function may_accept()
  if able_to then return end
  local full = redis.pcall('XADD', STREAM, '0-0', 'id', '') -- no entry can have this id
  if not string.find(full.err, 'greater than 0-0', 1, true) then error(full.err, 0) end
  may_wait()
  able_to = true
end
-- accept(task): accepted, whole or not at all; answers what is to be said of it: nil when it was added, 'known'
-- for an id that is taken, 'fault' and words of an error, or a word, an id and more.
local function accept(task)
  local able, refused = pcall(may_accept)
  if not able then return 'fault', said(refused) end
  local made = redis.pcall('HSETNX', TASK .. task.id, 'entry', '')
  if made == 0 then return 'known' end
  if made ~= 1 then return 'fault', made.err end
  local fault, happened = whole(accepted, task)
  go_to(HOME)
  if fault then
    stands = {}
    return 'fault', fault
  end
  return happened
end
