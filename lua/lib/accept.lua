-- The parents of this call's tasks, by kind, lane, a blank and id: how each stands ('' until it has ended), its keys,
-- edges that are not written yet, and how many more read its record; true for a task of this call that was not asked
-- for yet. All parents with edges, one after the other.
local known, parents = {}, {}
local marks, counting = {}, false -- the marks that are missing, by lane; whether a reader was counted
local able_to
local OWN = 't' .. HOME .. ' '
local NEW = { 'entry', 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts', 'after', 'added_ms', 'under',
  'place', 'parents', 'due' }
-- What other files call of the block below; the rest of it takes none of the 200 locals that Lua allows a script.
local parent_of, write_parents, accepted, may_accept, accept
do
-- state_of(kind, id): how a parent in this lane stands: its state once it has ended, '' before; nil where there is none.
local function state_of(kind, id)
  if kind == 'b' then
    local has = redis.call('HMGET', BATCH .. id, 'total', 'finished_ms', 'succeeded')
    if not has[1] then return nil end
    if not has[2] then return '' end
    return has[3] == has[1] and 'succeeded' or 'failed'
  end
  local has = look({}, 'HMGET', TASK .. id, 'state', 'entry')
  if not has[1] and not has[2] then return nil end
  if has[1] and has[1] ~= 'delayed' and has[1] ~= 'waiting' then return has[1] end
  return ''
end
-- parent_of(key, kind, lane, id): a parent as it stands; nil where there is none.
function parent_of(key, kind, lane, id)
  go_to(lane)
  local state = known[key] and '' or state_of(kind, id)
  if not state then return nil end
  local found = { kind = kind, lane = lane, id = id, state = state, readers = 0, edges = {},
    line = DEPENDANTS .. kind .. ':' .. ref_of(id), record = (kind == 'b' and BATCH or TASK) .. id }
  known[key] = found
  return found
end
-- forget(of, edges, readers): so many edges and readers of a parent, which are not written yet, are none.
local function forget(of, edges, readers)
  for _ = 1, edges do of.edges[#of.edges] = nil end
  of.readers = of.readers - readers
end
-- prepare(of, reads): all that may fail before a task depends on a parent. That tasks can be marked as parents, and their
-- readers be counted, is shown by the first: the others are written with the edges.
local function prepare(of, reads)
  if of.kind == 'b' then
    if of.state == '' then redis.call('HSET', of.record, 'dependants', '1') end
    return
  end
  if of.state == '' and not marks[of.lane] then
    go_to(of.lane)
    mark_parent(of.id)
    marks[of.lane] = { key = WAITERS }
  end
  if not reads or (of.state == '' and counting) then return end
  if of.state ~= '' then
    local left = redis.call('PTTL', of.record)
    if left > 0 then
      redis.call('HSETNX', of.record, 'keep_ms', left)
      redis.call('PERSIST', of.record)
    end
  end
  redis.call('HINCRBY', of.record, 'readers', 1)
  undoing('HINCRBY', of.record, 'readers', -1)
  of.readers = of.readers - 1
  undoing(forget, of, 0, -1)
  counting = true
end
-- depend(of, edge, reads): a task depends on this parent, and may read its record. Noted for undoing.
local function depend(of, edge, reads)
  local n = #of.edges
  if n == 0 then parents[#parents + 1] = of end
  of.edges[n + 1] = edge
  if reads then of.readers = of.readers + 1 end
  noted[#noted + 1] = { forget, of, 1, reads and 1 or 0 }
end
-- write_parents(): the edges of this call's tasks, and what their parents need to know of them.
function write_parents()
  for i = 1, #parents do
    local of = parents[i]
    if of.state == '' and of.edges[1] then
      local added = redis.pcall('RPUSH', of.line, unpack(of.edges, 1, #of.edges))
      for k = 1, type(added) == 'table' and #of.edges or 0 do -- what depends on it ends as cancelled
        later('end', string.match(of.edges[k], '^%S+ (.*)$'), 'cancelled\n' .. added.err)
      end
      if of.kind == 't' then table.insert(marks[of.lane], of.id) end
    end
    if of.readers > 0 then redis.call('HINCRBY', of.record, 'readers', of.readers) end
    of.edges, of.readers = {}, 0
  end
  for _, ids in pairs(marks) do
    for from = 1, #ids, 1000 do
      local to = math.min(from + 999, #ids)
      local has, set = redis.call('HMGET', ids.key, unpack(ids, from, to)), {}
      for k = from, to do
        local waiting = has[k - from + 1]
        if not waiting or not string.find('\n' .. waiting .. '\n', '\n>\n', 1, true) then
          set[#set + 1] = ids[k]
          set[#set + 1] = waiting and waiting .. '\n>' or '>'
        end
      end
      if #set > 0 then redis.call('HSET', ids.key, unpack(set, 1, #set)) end
    end
  end
  marks, parents, counting = {}, {}, false
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
-- edges_of(task, lane): the parents of a new task; a policy for each; the same as lines; and why the task cannot run, if
-- that is so. Raises what it is where there is no such parent.
local function edges_of(task, lane)
  local of, policies, lines, unmet, n = {}, {}, {}, nil, 0
  for line, policy, key, kind, there, id in string.gmatch('\n' .. task.conditions, '\n((%a)((%a)(!?%a*) ([^\n]*)))') do
    local found = known[key]
    if not found or found == true then
      found = not (id == task.id and there == lane) and parent_of(key, kind, there, id)
      if not found then error('unknown parent ' .. id, 0) end
    end
    n = n + 1
    of[n], policies[n], lines[n] = found, policy, line
    if found.state ~= '' then
      unmet = unmet or why(policy, kind .. ':' .. (there == '' and id or there .. '\n' .. id), found.state)
    end
  end
  return of, policies, lines, unmet
end
-- accepted(task): a new task is in the stream, or waits, from now on; nothing is answered then. Else what
-- happened instead; raises what fails. Of a task: id, name, payload, opts, due (ms, 0 now), conditions. What its own
-- record says of it undoes the caller.
function accepted(task)
  local id, record = task.id, TASK .. task.id
  local lane, gate = HERE, nil
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
  task.attempt, task.recovered, task.gate, task.terms, task.new = '1', '0', gate, asked, true
  local happened, unended, after = task.again and { 'again', id, '' } or nil, 0, nil
  if task.conditions ~= '' then
    local of, policies, lines, unmet = edges_of(task, lane)
    if unmet then
      go_to(lane)
      wait(id, task, 'parents', '')
      later('end', ref_of(id), 'cancelled\n' .. unmet)
      return happened
    end
    for i = 1, #of do
      if of[i].state == '' then unended = unended + 1 end
      prepare(of[i], asked.parents)
    end
    go_to(lane)
    if of[1] then
      task.place = new_place()
      after = asked.parents and table.concat(lines, '\n')
    end
    if unended > 0 then
      task.more = { 'parents', int(unended), 'after', after or nil }
      if task.due > NOW then
        table.insert(task.more, 1, int(task.due))
        table.insert(task.more, 1, 'due')
      end
      if not after then task.more[#task.more] = nil end
      wait(id, task, 'parents', '')
    end
    local edge = of[1] and int(task.place) .. ' ' .. ref_of(id)
    for i = 1, #of do depend(of[i], policies[i] .. edge, asked.parents) end
    if unended > 0 then return happened end
  end
  if after then redis.call('HSET', record, 'after', after) end
  if task.due > NOW then
    redis.call('HSET', record, 'state', 'delayed', 'reason', 'delay', 'name', task.name, 'payload', task.payload,
      'attempt', '1', 'recovered', '0', 'opts', task.opts)
    redis.call('ZADD', DELAYED, int(task.due), id)
    undoing('ZREM', DELAYED, id)
  elseif gate == '' then
    local entry = add(id, task.name, task.payload, '1', '0', task.opts)
    undoing('XDEL', STREAM, entry)
    redis.call('HSET', record, 'entry', entry)
  else
    enter(id, task, nil)
    if #todo > 0 and todo[#todo][1] == 'end' and todo[#todo][2] == ref_of(id) then
      local words = string.match(todo[#todo][3], '\n(.*)$')
      happened = words and { 'dropped', id, words } or happened
    end
  end
  return happened
end
-- may_accept(): proves that tasks can be accepted, before anything is written: a full server, and one where they could
-- not wait, is noticed here. Asked once a call.
function may_accept()
  if able_to then return end
  local full = redis.pcall('XADD', STREAM, '0-0', 'id', '') -- no entry can have this id
  if not string.find(full.err, 'greater than 0-0', 1, true) then error(full.err, 0) end
  may_wait()
  able_to = true
end
-- accept(task): accepted, whole or not at all; answers what is to be said of it: nil when it was added, 'known'
-- for an id that is taken, 'fault' and words of an error, or a word, an id and more.
function accept(task)
  if not able_to then
    local able, refused = pcall(may_accept)
    if not able then return 'fault', said(refused) end
  end
  local record = TASK .. task.id
  local made = redis.pcall('HSETNX', record, 'entry', '')
  if made == 0 then return 'known' end
  if made ~= 1 then return 'fault', made.err end
  local lane = HERE
  local fault, happened = whole(accepted, task)
  go_to(HOME)
  if fault then
    stands = {}
    redis.pcall('HDEL', record, unpack(NEW))
    return 'fault', fault
  end
  if lane == HOME and (not happened or happened[1] == 'again') then known[OWN .. task.id] = true end
  return happened
end
end
