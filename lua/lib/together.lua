-- recount(now, used, waiting): so many more slots are in use, and so many more tasks wait, under a key that stands so.
local function recount(now, used, waiting)
  if used ~= 0 then count(now.s, used) end
  if waiting ~= 0 then count(now.w, waiting) end
  now.used, now.waiting = now.used + used, now.waiting + waiting
end
-- What a record says of waiting, at most; and of a new task in a line, or of one that waits for parents alone.
local AWAY = {
  all = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'under', 'attempt', 'recovered', 'parents', 'due', 'held' },
  lined = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'under' },
  parents = { 'state', 'reason', 'place', 'name', 'payload', 'opts', 'parents' },
}
-- let_go(id, name, payload, attempt, recovered, opts, away): a task that waited and has nothing to take is in the stream
-- from now on, whole or not at all; raises what fails. `away`: what its record said of its waiting.
local function let_go(id, name, payload, attempt, recovered, opts, away)
  local record, entry = TASK .. id, add(id, name, payload, attempt, recovered, opts)
  local written = redis.pcall('HSET', record, 'entry', entry)
  if type(written) ~= 'table' then
    written = redis.pcall('HDEL', record, unpack(away, 1, #away))
    if type(written) ~= 'table' then return end
    redis.pcall('HSET', record, 'entry', '')
  end
  redis.pcall('XDEL', STREAM, entry)
  return error(written.err, 0)
end
-- let_in(id, task): a task whose keys are taken is in the stream from now on. Noted for undoing, but for
-- what its record said of its waiting, which goes last.
local function let_in(id, task)
  local entry = add(id, task.name, task.payload, task.attempt, task.recovered, task.opts)
  noted[#noted + 1] = { 'XDEL', STREAM, entry }
  local record, away = TASK .. id, task.away or AWAY.all
  redis.call('HSET', record, 'entry', entry)
  noted[#noted + 1] = { 'HSET', record, 'entry', '' }
  redis.call('HDEL', record, unpack(away, 1, #away))
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
-- How many steps follow from one call, at most: what is left over is for the next, by a timer.
local steps = 200
-- task_in_line(id, key): a task that waits under this key; nil where it does not. Of one that asks for no other, no
-- more is read than it takes to let it in.
local function task_in_line(id, key)
  local record = TASK .. id
  local has = redis.call('HMGET', record, 'state', 'under', 'name', 'payload', 'attempt', 'recovered', 'opts')
  if has[1] ~= 'waiting' or has[2] ~= key then return nil end
  local opts = has[7] or ''
  local gate = option(opts, 'gate')
  local task = { waits = true, in_line = true, opts = opts, gate = gate, terms = terms(gate), name = has[3] or '',
    payload = has[4] or '', attempt = has[5] or '1', recovered = has[6] or '0', away = not has[5] and AWAY.lined or nil }
  local keys = task.terms.keys
  if keys[1] and keys[1].order then
    has = redis.call('HMGET', record, 'place', 'held')
    task.place, task.held = tonumber(has[1] or 0), has[2] or nil
    task.in_line = not task.held
    if task.held then task.away = nil end
  end
  return task
end
-- go_in_together(key, now, most): lets in the first in line under a key that has slots but no rate, as long as they
-- are plain and ask for no other: one step for what is beside their records. Answers how many.
local function go_in_together(key, now, most)
  local line, used, n, fault = WAITING .. ':' .. key, 0, 0, nil
  local room = most and math.max(most - now.used, 1) or 50
  may_wait()
  local refs = redis.call('ZRANGE', line, 0, int(math.min(room, 50, steps)) - 1)
  for i = 1, #refs do
    local id = visit(refs[i])
    local task = task_in_line(id, key)
    local keys = task and task.terms.keys
    if not task or not task.terms.plain or keys[2] then break end
    local weight = keys[1].weight
    if most and now.used + used > 0 and now.used + used + weight > most then break end
    local ok, said_no = pcall(let_go, id, task.name, task.payload, task.attempt, task.recovered, task.opts,
      task.away or AWAY.all)
    if not ok then
      fault = said(said_no)
      break
    end
    n, used = i, used + weight
  end
  if n > 0 then
    steps = steps - n
    redis.call('ZREM', line, unpack(refs, 1, n))
    redis.call('ZREM', WAITING, unpack(refs, 1, n))
    now.heads = nil
    recount(now, used, -n)
  end
  if fault then error(fault, 0) end
  return n
end
